//! Configuration files.

use std::fs;

use node::Config;

/// The text of a configuration, of a site and of a proxy. What is taken can be written, and reads
/// back as the same.
///
/// # Panics
///
/// If a promise is broken.
pub fn config(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sojourn.toml");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("a temporary file takes what it gets");
        Config::load(&path)
    };
    match read(data) {
        Ok(config) => {
            let again = read(config.to_toml().as_bytes()).expect("what was written is read");
            assert_eq!(again, config);
            for proxy in &config.proxies {
                let named = config.proxies.iter().filter(|other| other.name == proxy.name);
                assert!(!proxy.name.is_empty() && named.count() == 1);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(proxy) = toml::from_str::<transfer_proxy::process::Config>(text)
    {
        let again = toml::to_string_pretty(&proxy).expect("a configuration is plain data");
        assert_eq!(toml::from_str(&again), Ok(proxy));
    }
}
