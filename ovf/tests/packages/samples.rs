//! Descriptors in the style of the tools that people export from.

use std::fs;

use model::monitoring::{Delivery, Specifier};
use model::vm::Nic;
use model::{Bytes, VmName};
use ovf::{DiskFormat, Limits, Package};
use sha1::{Digest, Sha1};

use crate::make::{good_but, manifest, open, open_text, write};

fn has_warning(package: &Package, part: &str) -> bool {
    package.warnings.iter().any(|warning| warning.contains(part))
}

#[test]
fn an_export_of_virtualbox_is_taken() {
    let text = include_bytes!("../data/virtualbox.ovf");
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "Debian 12-disk001.vmdk", b"KDMV and so on");
    let sha1 = |bytes: &[u8]| data_encoding::HEXLOWER.encode(&Sha1::digest(bytes));
    let lines = format!(
        "SHA1 (Debian 12.ovf) = {}\nSHA1 (Debian 12-disk001.vmdk) = {}\n",
        sha1(text),
        sha1(b"KDMV and so on"),
    );
    write(&folder, "Debian 12.mf", lines);
    let package = open(&write(&folder, "Debian 12.ovf", text)).unwrap();
    package.verify_manifest().unwrap();
    let vm = &package.descriptor;
    assert_eq!(vm.name.as_str(), "debian-12");
    assert_eq!((vm.resources.cpus, vm.resources.memory), (2, Bytes::mib(2048)));
    let nic = |network: &str, last| Nic { network: network.into(), mac: [2, 0, 0, 0, 0, last] };
    assert_eq!(vm.nics, [nic("NAT", 1), nic("HostOnly", 2)]);
    assert_eq!(package.disks.len(), 1);
    assert_eq!(package.disks[0].file.as_deref(), Some("Debian 12-disk001.vmdk"));
    assert_eq!(package.disks[0].format, DiskFormat::VmdkStream);
    assert_eq!(package.disks[0].capacity, Bytes::mib(20 << 10));
    for part in ["debian-12 here", "\"sound\"", "\"cdrom1\"", "vbox:Machine", "ProductSection"] {
        assert!(has_warning(&package, part), "no {part:?} in {:#?}", package.warnings);
    }
    assert!(has_warning(&package, "SHA-1"));
}

#[test]
fn an_export_of_virtualbox_in_ovf_2_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "alpine-disk001.vmdk", b"KDMV");
    let text = include_bytes!("../data/virtualbox-2.0.ovf");
    let package = open(&write(&folder, "alpine.ovf", text)).unwrap();
    assert_eq!(package.descriptor.name.as_str(), "alpine");
    assert_eq!(package.descriptor.resources.memory, Bytes::mib(512));
    assert_eq!(package.descriptor.nics[0].network, "Bridged");
    assert_eq!(package.disks[0].capacity, Bytes::mib(2048));
    assert_eq!(package.warnings.len(), 1, "{:#?}", package.warnings);
    assert!(has_warning(&package, "no manifest"));
}

#[test]
fn an_export_of_vsphere_is_taken_with_its_default_configuration_and_boot_order() {
    let text = include_bytes!("../data/vsphere.ovf");
    let (first, second, nvram) = ([1; 1536], [2; 2048], [3; 270]);
    let files: [(&str, &[u8]); 4] = [
        ("db01.ovf", text),
        ("db01-1.vmdk", &first),
        ("db01-2.vmdk", &second),
        ("db01-3.nvram", &nvram),
    ];
    let manifest = manifest(&files);
    let mut all = files.to_vec();
    all.insert(1, ("db01.mf", manifest.as_bytes()));
    all.push(("db01.cert", b"a certificate"));
    let folder = tempfile::tempdir().unwrap();
    let package = open(&write(&folder, "db01.ova", crate::make::archive(&all))).unwrap();
    package.verify_manifest().unwrap();
    let vm = &package.descriptor;
    assert_eq!(vm.name.as_str(), "db01-prod");
    assert_eq!((vm.resources.cpus, vm.resources.memory), (8, Bytes::mib(16 << 10)));
    assert_eq!(vm.nics[0].mac, [0x00, 0x50, 0x56, 0x9a, 0x12, 0x34]);
    let disks: Vec<_> = package.disks.iter().map(|d| (d.file.as_deref(), d.capacity)).collect();
    let gib = |n: u64| Bytes::mib(n << 10);
    let wanted = [(Some("db01-2.vmdk"), gib(16)), (Some("db01-1.vmdk"), gib(100)), (None, gib(8))];
    assert_eq!(disks, wanted);
    assert_eq!(package.disks[0].populated, Some(gib(2)));
    assert_eq!(package.disks[2].format, DiskFormat::Raw);
    for part in ["vmw:Config is passed over, 3 times", "EulaSection", "VMCI", "certificate"] {
        assert!(has_warning(&package, part), "no {part:?} in {:#?}", package.warnings);
    }

    let target = folder.path().join("disk0");
    package.extract_disk(0, &target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), second);
    let empty = folder.path().join("disk2");
    package.extract_disk(2, &empty).unwrap();
    assert_eq!(fs::metadata(&empty).unwrap().len(), gib(8).0);
}

#[test]
fn a_hand_made_package_with_images_of_qemu_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "vm-100-disk-0.qcow2", b"QFI\xfb");
    write(&folder, "vm 100 data.raw", [7; 4096]);
    write(&folder, "seed.img", [8; 512]);
    let text = include_bytes!("../data/qemu.ovf");
    let path = write(&folder, "vm100.ovf", text);
    let name: VmName = "mail".parse().unwrap();
    let package =
        Package::open(&path, &Limits::default(), Some(&name), &mut || unreachable!()).unwrap();
    assert_eq!(package.descriptor.name, name);
    assert_eq!(package.descriptor.resources.memory, Bytes::mib(4096));
    assert_eq!(package.descriptor.nics[0].mac, [0x52, 0x54, 0x00, 0xa0, 0xb0, 0xc0]);
    let formats: Vec<_> = package.disks.iter().map(|d| (d.format, d.capacity)).collect();
    let wanted = [
        (DiskFormat::Qcow2, Bytes::mib(32 << 10)),
        (DiskFormat::Raw, Bytes(8192)),
        (DiskFormat::Raw, Bytes(512)),
    ];
    assert_eq!(formats, wanted);
    assert_eq!(package.disks[1].file.as_deref(), Some("vm 100 data.raw"));
}

#[test]
fn kpis_and_rules_of_reservoirs_claudia_are_taken_over() {
    const SECTIONS: &str = r#"
      <c:ElasticArraySection xmlns:c="http://schemas.telefonica.com/claudia/ovf">
        <Info>When there are more</Info>
        <c:Rule>
          <c:KPIName>jobs</c:KPIName>
          <c:Window unit="minute">5</c:Window>
          <c:Frequency>30</c:Frequency>
          <c:Quota>40.5</c:Quota>
          <c:Tolerance>10</c:Tolerance>
        </c:Rule>
        <c:Rule><c:KPIType>VEEHW</c:KPIType><c:KPIName>cpu</c:KPIName><c:Quota>2</c:Quota></c:Rule>
        <c:Rule><c:KPIType>VEEHW</c:KPIType><c:KPIName>luck</c:KPIName><c:Quota>2</c:Quota></c:Rule>
      </c:ElasticArraySection>
      <c:KPISection ovf:required="true" xmlns:c="http://schemas.telefonica.com/claudia/ovf">
        <c:KPI c:KPIname="customers.shop.kpis.jobs"/>
        <c:KPI KPIname="memory" KPItype="VEEHW"/>
      </c:KPISection>"#;
    let package = open_text(&good_but("<!--more-->", SECTIONS)).unwrap();
    let told: Vec<String> = package
        .descriptor
        .monitoring
        .specifiers
        .iter()
        .map(|specifier| match &specifier.delivery {
            Delivery::Every(ms) => format!("{} every {ms}", specifier.measure),
            Delivery::When(condition) => {
                let Specifier { measure, interval_ms, format, .. } = specifier;
                format!("{format} of {measure} {condition}, each {interval_ms}")
            }
        })
        .collect();
    let wanted = [
        "kpi.jobs every 0",
        "memory_resident every 0",
        "mean of kpi.jobs > 40.5 ~ 4.05 for 300 s, each 30000",
        "mean of cpu_share > 2, each 0",
    ];
    assert_eq!(told, wanted);
    let warned = package.warnings.iter().any(|warning| warning.contains("\"luck\""));
    assert!(warned, "{:?}", package.warnings);
}
