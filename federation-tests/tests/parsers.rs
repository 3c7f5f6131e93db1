//! What fuzzing kept: every input of `fuzz/corpus` and `fuzz/findings` again, through the same
//! promises. `cargo xtask fuzz` looks for new ones.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;

use federation_tests::parsers::TARGETS;
use federation_tests::parsers::seeds::seeds;
use hypervisor::ImageFormat;
use hypervisor::image::inspect;
use model::Bytes;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz")
}

fn names(folder: &str, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz().join(folder)).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
}

/// Every kept input of a target.
fn kept(target: &str) -> Vec<PathBuf> {
    let folders = ["corpus", "findings"].map(|folder| fuzz().join(folder).join(target));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

/// Runs every kept input of these targets; panics with the names of all that break a promise.
fn replay(targets: &[&str]) {
    let mut broken = vec![];
    for (name, check) in TARGETS.iter().filter(|(name, _)| targets.contains(name)) {
        let inputs = kept(name);
        assert!(!inputs.is_empty(), "{name} has no corpus; cargo xtask fuzz {name}");
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            if catch_unwind(|| check(&bytes)).is_err() {
                broken.push(input);
            }
        }
    }
    assert!(broken.is_empty(), "these inputs break a promise: {broken:#?}");
}

#[test]
fn every_parser_has_a_fuzz_target_and_a_kept_corpus() {
    let parsers: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets", ".rs"), parsers);
    assert_eq!(names("corpus", ""), parsers);
    assert!(names("findings", "").is_subset(&parsers));
    assert!(names("dictionaries", ".dict").is_subset(&parsers));
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for parser in parsers {
        assert!(manifest.contains(&format!("name = \"{parser}\"")), "{parser} is not built");
    }
}

#[test]
fn the_inputs_that_fuzzing_starts_from_can_be_made_for_every_target_and_keep_their_promises() {
    let seeds = seeds().unwrap();
    for (name, check) in TARGETS {
        let inputs: Vec<_> = seeds.iter().filter(|seed| seed.0 == name).collect();
        assert!(!inputs.is_empty(), "{name} starts from nothing");
        for (_, input) in inputs {
            check(input);
        }
    }
}

#[test]
fn envelopes_that_fuzzing_kept_keep_their_promises() {
    replay(&["sealed", "hop", "operation", "answer"]);
}

#[test]
fn what_is_signed_beyond_one_hop_and_fuzzing_kept_keeps_its_promises() {
    replay(&["chain", "told", "ticket", "text", "certificates"]);
}

#[test]
fn a_peers_words_that_fuzzing_kept_leave_the_machine_and_its_rules_whole() {
    replay(&["peer"]);
}

#[test]
fn packages_that_fuzzing_kept_keep_their_promises() {
    replay(&["ovf", "ova", "manifest"]);
}

#[test]
fn sessions_channels_and_qmp_that_fuzzing_kept_keep_their_promises() {
    replay(&["session", "channel", "qmp"]);
}

#[test]
fn the_sites_own_files_that_fuzzing_kept_keep_their_promises() {
    replay(&["config", "journal"]);
}

#[test]
fn policies_and_their_questions_that_fuzzing_kept_keep_their_promises() {
    replay(&["policy", "decision"]);
}

#[test]
fn kpi_files_and_the_words_of_their_host_that_fuzzing_kept_keep_their_promises() {
    replay(&["sheet", "words"]);
}

#[test]
fn monitoring_from_other_sites_that_fuzzing_kept_keeps_its_promises() {
    replay(&["values", "history", "usage"]);
}

#[test]
fn images_that_fuzzing_kept_keep_their_promises() {
    replay(&["image"]);
}

/// The size that `qemu-img` sees in an image of a known format, and what else it says. None if it
/// refuses the image.
fn qemu_img(path: &Path, format: ImageFormat) -> Option<serde_json::Value> {
    let driver = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Vmdk => "vmdk",
        ImageFormat::Vdi => "vdi",
        ImageFormat::Vhd => "vpc",
    };
    let seen = Command::new("prlimit")
        .args(["--cpu=10", "--as=1073741824", "--core=0"])
        .args(["qemu-img", "info", "--output=json", "-f", driver])
        .arg(path)
        .output()
        .unwrap();
    seen.status.success().then(|| serde_json::from_slice(&seen.stdout).unwrap())
}

#[test]
fn an_image_that_is_taken_is_no_more_for_qemu_img_than_it_is_for_us() {
    let limit = Bytes(1 << 40);
    let installed = Command::new("qemu-img").arg("--version").output().is_ok();
    if !installed {
        let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|what| what == "qemu"), "qemu-img is not installed");
        println!("skipped: qemu-img is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut compared = std::collections::BTreeMap::new();
    // As they are, and with room for the tables that their headers speak of.
    for (kept, room) in kept("image").iter().flat_map(|kept| [(kept, 0), (kept, 256 << 10)]) {
        let mut bytes = fs::read(kept).unwrap();
        bytes.resize(bytes.len().max(room), 0);
        fs::write(&path, bytes).unwrap();
        let Ok(ours) = inspect(&path, limit) else { continue };
        let Some(theirs) = qemu_img(&path, ours.format) else { continue };
        let name = kept.display();
        let size = theirs["virtual-size"].as_u64().unwrap();
        // It counts in sectors.
        assert!(size <= ours.virtual_size.0.next_multiple_of(512), "{name}: {size} for qemu-img");
        for other in ["backing-filename", "full-backing-filename", "encrypted"] {
            assert!(theirs.get(other).is_none(), "{name}: {other}: {theirs}");
        }
        let special = &theirs["format-specific"]["data"];
        assert!(special.get("data-file").is_none(), "{name}: {theirs}");
        let extents = special["extents"].as_array().map_or(1, Vec::len);
        assert_eq!(extents, 1, "{name}: {theirs}");
        *compared.entry(ours.format.to_string()).or_insert(0) += 1;
    }
    println!("compared: {compared:?}");
    assert!(compared.len() >= 3, "too few of the kept images were compared: {compared:?}");
}

#[test]
fn a_row_that_does_not_follow_from_the_journal_changes_nothing() {
    use model::{Chain, Digest, MigrationId, PublicKey, Signature, Signed, Time, TokenHash};
    use protocol::{Mode, Row};

    let mut world = federation_tests::world::World::of(&["alpha"]);
    let vm = world.import("alpha");
    let mut state = world.state("alpha").clone();
    let (migration, key) = (MigrationId([1; 16]), PublicKey([2; 32]));
    let certificate = Signed::from_parts(vec![], key, Signature([0; 64]));
    let offered = Row::Offered {
        migration,
        vm,
        controller: key,
        target_vm_key: key,
        target_transfer_key: key,
        transfer_key: key,
        token: TokenHash([3; 32]),
        hint: [4; 16],
        mode: Mode::Restart,
        deadline: Time(5),
        dial: None,
    };
    let quiesced = Row::Quiesced { migration };
    let sent = Row::Sent { migration, digest: Digest([6; 32]) };
    let released = Row::Released { migration, certificate: certificate.clone() };
    let receipt = Signed::from_parts(vec![], key, Signature([0; 64]));
    let flipped = Row::Flipped { migration, certificate, owned: receipt };
    let mut other = vm;
    other.0[0] ^= 1;
    let descriptor = state.vms[&vm].descriptor.clone();
    let chain = Chain { k0: key, certificates: vec![] };
    let imported = Row::Imported { vm: other, descriptor, chain };
    let initiated = Row::Initiated { migration, active: true };
    for row in [offered, initiated, quiesced.clone(), sent.clone()] {
        state.apply(&row).unwrap();
    }
    state.apply(&Row::Destroyed { vm }).unwrap();
    for row in [quiesced, released, flipped, imported] {
        let before = state.clone();
        assert!(state.apply(&row).is_err(), "{} was taken", row.kind());
        assert_eq!(state, before, "{} was refused and changed something", row.kind());
    }
}
