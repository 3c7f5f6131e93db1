#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| federation_tests::parsers::opened(data));
