//! What is written reads back, here and with another reader.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use model::monitoring::{Delivery, Format, Monitoring, SealingKey, Specifier};
use model::vm::{Disk, Nic, Restrictions};
use model::{Bytes, Descriptor, FileId, Resources};
use ovf::{DiskFormat, ExportError, write_ova};
use tempfile::TempDir;

use crate::make::{open, story, write};

fn vm(disks: &[u64]) -> Descriptor {
    let disk = |(at, size): (usize, &u64)| Disk { file: FileId::disk(at), capacity: Bytes(*size) };
    let nic =
        |network: &str, last| Nic { network: network.into(), mac: [0x52, 0x54, 0, 0, 0, last] };
    Descriptor {
        name: "shop-1".parse().unwrap(),
        resources: Resources { cpus: 3, memory: Bytes::mib(768) },
        disks: disks.iter().enumerate().map(disk).collect(),
        nics: vec![nic("lan", 1), nic("R&D <\"lab\"> 'ü' ]]>", 0xfe), nic("lan", 3)],
        restrictions: Restrictions {
            no_delegation: true,
            countries: vec!["CH".into(), "DE".into()],
            max_price_milli: Some(12_005),
            apart: Some("shop<&>db".into()),
        },
        monitoring: Monitoring {
            revision: 0,
            specifiers: vec![
                monitor("cpu_share", Delivery::Every(10_000), Format::Mean, false),
                monitor("web.current_users", when("> 1000 ~ 50 for 30 s"), Format::Raw, true),
                monitor("web.current_users", when("< -0.5"), Format::Median, false),
            ],
            sealing_key: Some(SealingKey([0xfb; 32])),
            voucher: None,
        },
    }
}

fn monitor(measure: &str, delivery: Delivery, format: Format, sealed: bool) -> Specifier {
    let (measure, limit) = (measure.parse().unwrap(), matches!(delivery, Delivery::When(_)));
    Specifier { measure, interval_ms: 250, delivery, format, sealed, limit }
}

fn when(condition: &str) -> Delivery {
    Delivery::When(condition.parse().unwrap())
}

fn images(folder: &TempDir, sizes: &[u64]) -> Vec<PathBuf> {
    let image = |(at, size): (usize, &u64)| {
        let bytes: Vec<u8> = (0..*size).map(|n| (n % 251) as u8 ^ at as u8).collect();
        write(folder, &format!("image{at}"), bytes)
    };
    sizes.iter().enumerate().map(image).collect()
}

#[test]
fn what_is_exported_is_imported_as_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let many = [700; 20];
    for sizes in [&[][..], &[0], &[1024], &[512, 1, 300_000], &many] {
        let target = folder.path().join("vm.ova");
        let images = images(&folder, sizes);
        let vm = vm(sizes);
        write_ova(&target, &vm, &images).unwrap();
        let package = open(&target).unwrap();
        assert_eq!(package.descriptor, vm);
        assert!(package.warnings.is_empty(), "{:?}", package.warnings);
        package.verify_manifest().unwrap();
        for (at, image) in images.iter().enumerate() {
            assert_eq!(package.disks[at].format, DiskFormat::Raw);
            let out = folder.path().join("out");
            package.extract_disk(at, &out).unwrap();
            assert_eq!(fs::read(&out).unwrap(), fs::read(image).unwrap());
            fs::remove_file(&out).unwrap();
        }
    }
}

#[test]
fn a_vm_with_odd_memory_and_without_our_sections_survives_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = vm(&[]);
    vm.resources.memory = Bytes((256 << 20) + 1);
    vm.restrictions = Restrictions::default();
    vm.monitoring = Monitoring::default();
    vm.nics.clear();
    let target = folder.path().join("vm.ova");
    write_ova(&target, &vm, &[]).unwrap();
    assert_eq!(open(&target).unwrap().descriptor, vm);
    let text = String::from_utf8_lossy(&fs::read(&target).unwrap()).into_owned();
    assert!(!text.contains("sojourn.example"));
}

#[test]
fn a_monitoring_section_stands_alone_too_and_is_read_back_as_the_same() {
    let many = vm(&[]).monitoring;
    for section in [many, Monitoring::default()] {
        let text = ovf::monitoring_text(&section);
        assert_eq!(ovf::read_monitoring(&text).unwrap(), (section, vec![]), "{text}");
    }
}

#[test]
fn what_says_nothing_of_monitoring_is_not_taken_for_an_empty_section() {
    let silent = "<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'/>";
    let other = "<sj:Monitor xmlns:sj='https://sojourn.example/ovf/1' measure='cpu_share'/>";
    for (text, wanted) in [
        (silent, "has no MonitoringSection"),
        (other, "neither a MonitoringSection nor"),
        ("", "not well-formed XML"),
    ] {
        let fault = ovf::read_monitoring(text).unwrap_err().to_string();
        assert!(fault.contains(wanted), "{text:?} gave {fault:?}");
    }
}

#[test]
fn the_archive_is_what_other_readers_expect() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [1000, 2000];
    let images = images(&folder, &sizes);
    let target = folder.path().join("vm.ova");
    write_ova(&target, &vm(&sizes), &images).unwrap();
    let bytes = fs::read(&target).unwrap();
    assert_eq!(bytes.len() % 512, 0);
    assert!(bytes.ends_with(&[0; 1024]));
    let mut files = Vec::new();
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o644, 0));
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert!(header.as_ustar().is_some());
        let name = entry.path().unwrap().display().to_string();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        files.push((name, contents));
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = ["shop-1.ovf", "shop-1.mf", "shop-1-disk1.raw", "shop-1-disk2.raw"];
    assert_eq!(names, wanted);
    let covered: Vec<(&str, &[u8])> =
        [0, 2, 3].map(|at| (names[at], files[at].1.as_slice())).into();
    assert_eq!(String::from_utf8(files[1].1.clone()).unwrap(), crate::make::manifest(&covered));

    let again = folder.path().join("again.ova");
    write_ova(&again, &vm(&sizes), &images).unwrap();
    assert_eq!(fs::read(&again).unwrap(), bytes, "the same VM gave other bytes");
}

#[test]
fn zeros_become_holes() {
    let folder = tempfile::tempdir().unwrap();
    let size = 64 << 20;
    let image = write(&folder, "image", b"boot sector");
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(size).unwrap();
    let target = folder.path().join("vm.ova");
    write_ova(&target, &vm(&[size]), std::slice::from_ref(&image)).unwrap();
    let out = folder.path().join("out");
    open(&target).unwrap().extract_disk(0, &out).unwrap();
    for path in [&target, &out] {
        let meta = fs::metadata(path).unwrap();
        assert!(meta.len() >= size);
        assert!(meta.blocks() * 512 < size / 8, "{} bytes in use", meta.blocks() * 512);
    }
    assert_eq!(fs::read(&out).unwrap(), fs::read(&image).unwrap());
}

#[test]
fn a_refused_export_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(&folder, &[512]);
    let before = fs::read_dir(folder.path()).unwrap().count();
    let target = folder.path().join("vm.ova");
    let refused = |vm: &Descriptor, images: &[PathBuf], wanted: &str| {
        let error: ExportError = write_ova(&target, vm, images).unwrap_err();
        assert!(story(&error).contains(wanted), "{:?}, without {wanted:?}", story(&error));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
    };
    refused(&vm(&[512]), &[], "1 disks, 0 images");
    refused(&vm(&[1024]), &images, "has 512 bytes, its disk has 1024");
    refused(&vm(&[512]), &[folder.path().join("missing")], "cannot be packed");
    let mut odd = vm(&[512]);
    odd.nics[0].network = " lan".into();
    refused(&odd, &images, "blanks");
    odd.nics[0].network = "\u{fffe}".into();
    refused(&odd, &images, "not well-formed");
    odd.nics.truncate(1);
    odd.nics[0] = Nic { network: "lan".into(), mac: [0xff; 6] };
    refused(&odd, &images, "MAC address");
    odd.resources.cpus = 0;
    refused(&odd, &images, "cpus must be");
}
