//! The committed code is what the .proto files give.

use std::path::Path;

#[test]
fn the_generated_code_is_the_committed_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen");
    let out = tempfile::tempdir().unwrap();
    let files = ["sojourn/federation.proto", "sojourn/admin.proto"];
    let descriptors = protox::compile(files, [root.join("proto")]).unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors.clone())
        .unwrap();
    let bytes = prost::Message::encode_to_vec(&descriptors);
    std::fs::write(out.path().join("descriptors.bin"), bytes).unwrap();
    let regenerate = std::env::var_os("SOJOURN_REGENERATE").is_some();
    for entry in std::fs::read_dir(out.path()).unwrap() {
        let made = entry.unwrap();
        let kept = committed.join(made.file_name());
        let new = std::fs::read(made.path()).unwrap();
        if regenerate {
            std::fs::create_dir_all(&committed).unwrap();
            std::fs::write(&kept, &new).unwrap();
        }
        let old = std::fs::read(&kept).unwrap_or_default();
        assert!(
            old == new,
            "{} is not what proto/proto gives; run the test with SOJOURN_REGENERATE=1",
            kept.display()
        );
    }
}
