//! Packages that must be refused, and say why.

use std::fs;
use std::os::unix::fs::symlink;

use model::Bytes;
use ovf::{Limits, Package, VerifyError};

use crate::make::{
    self, DISK, GOOD, archive, entry, good_archive, good_but, manifest, open, open_archive,
    open_text, story, write,
};

#[test]
fn the_good_package_is_taken() {
    let package = open_text(GOOD).unwrap();
    assert_eq!(package.descriptor.name.as_str(), "web");
    let package = open_archive(&good_archive()).unwrap();
    package.verify_manifest().unwrap();
    assert!(package.warnings.is_empty(), "{:?}", package.warnings);
}

/// What is replaced in the good descriptor, by what, and what the error must say.
#[rustfmt::skip]
const DESCRIPTORS: &[(&str, &str, &str)] = &[
    // XML
    ("<Envelope", "<!DOCTYPE e [<!ENTITY a \"b\">]>\n<Envelope", "line 2, column 1: document type"),
    ("<Envelope", "<!DOCTYPE e SYSTEM \"http://e.example/x\">\n<Envelope", "document type"),
    ("A VM", "&boom;", "line 18, column 11: the entity \"boom\""),
    ("ovf:id=\"web\"", "ovf:id=\"&boom;\"", "the entity \"boom\""),
    ("A VM", "<Info>", "not well-formed XML"),
    ("</Envelope>", "", "not well-formed XML"),
    ("A VM", "\u{1}", "not well-formed XML"),
    ("ovf:id=\"web\"", "ovf:id=\"web\" ovf:id=\"x\"", "line 17, column 31: not well-formed XML"),
    ("envelope/1\"\n", "envelope/3\"\n", "no OVF envelope"),
    ("<Envelope", "<html/><Envelope", "not well-formed XML"),
    ("<Envelope", "</a></a><Envelope", "not well-formed XML"),
    // Files
    ("href=\"disk.raw\"", "href=\"../disk.raw\"", "line 6, column 5: the file name \"../disk.raw\""),
    ("href=\"disk.raw\"", "href=\"/etc/passwd\"", "is absolute"),
    ("href=\"disk.raw\"", "href=\"%2e%2e/disk.raw\"", "must stay inside"),
    ("href=\"disk.raw\"", "href=\"a\\..\\disk.raw\"", "backslash"),
    ("href=\"disk.raw\"", "href=\"http://e.example/disk.raw\"", "nothing is fetched"),
    ("href=\"disk.raw\"", "href=\"file:///etc/passwd\"", "nothing is fetched"),
    ("href=\"disk.raw\"", "href=\"\"", "is empty"),
    ("href=\"disk.raw\"", "href=\"other.raw\"", "the file \"other.raw\" is not in the package"),
    ("ovf:size=\"1024\"", "ovf:size=\"1025\"", "has 1024 bytes, the descriptor says 1025"),
    ("ovf:size=\"1024\"", "ovf:size=\"-1\"", "whole number"),
    ("ovf:size=\"1024\"", "ovf:size=\"1024\" ovf:compression=\"gzip\"", "compression"),
    ("ovf:size=\"1024\"", "ovf:size=\"1024\" ovf:chunkSize=\"512\"", "chunks"),
    ("<File ", "<File ovf:id=\"file1\" ovf:href=\"disk.raw\"/><File ", "a second File"),
    // Disks
    ("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file2\"", "the file \"file2\" is not in the package"),
    ("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file1\" ovf:parentRef=\"disk0\"", "snapshots"),
    ("capacity=\"1024\"", "capacity=\"-1024\"", "whole number"),
    ("capacity=\"1024\"", "capacity=\"18446744073709551616\"", "whole number"),
    ("capacity=\"1024\"", "capacity=\"${size}\"", "whole number"),
    ("capacity=\"1024\"", "capacity=\"512\"", "has 1024 bytes, the descriptor says 512"),
    ("capacity=\"1024\"", "capacity=\"1\" ovf:capacityAllocationUnits=\"byte * 2^64\"", "unit"),
    ("capacity=\"1024\"", "capacity=\"5\" ovf:capacityAllocationUnits=\"byte * 2^62\"", "below 2^64"),
    ("capacity=\"1024\"", "capacity=\"1\" ovf:capacityAllocationUnits=\"byte * 2^60\"", "are allowed"),
    ("http://en.wikipedia.org/wiki/Byte", "http://e.example/", "the disk's format"),
    ("ovf:/disk/disk1", "ovf:/disk/disk2", "the disk \"disk2\" is not in the package"),
    ("ovf:/disk/disk1", "/etc/passwd", "HostResource"),
    ("ovf:/disk/disk1", "ovf:/file/file9", "the file \"file9\" is not in the package"),
    // Hardware
    ("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>-2<", "line 21, column 7"),
    ("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>2.5<", "whole number"),
    ("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>0<", "cpus must be 1 to"),
    ("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>4294967296<", "far fewer"),
    ("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>100000<", "cpus must be 1 to"),
    ("<rasd:VirtualQuantity>256<", "<rasd:VirtualQuantity>0<", "memory in MiB must be"),
    ("<rasd:VirtualQuantity>256<", "<rasd:VirtualQuantity>99999999999999<", "below 2^64"),
    ("byte * 2^20", "hertz * 10^6", "unit of bytes"),
    ("byte * 2^20", "byte * 2^999999999999", "unit of bytes"),
    ("byte * 2^20", "parsec", "unit of bytes"),
    ("<rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>", "", "no AllocationUnits"),
    ("ResourceType>4<", "ResourceType>3<", "a second processor item"),
    ("52:54:00:00:00:01", "ff:ff:ff:ff:ff:ff", "MAC address"),
    ("52:54:00:00:00:01", "$(reboot)", "MAC address"),
    ("lan</rasd:Connection>", "</rasd:Connection>", "no Connection"),
    ("VirtualHardwareSection>\n      <Info>", "VirtualHardwareSection>\n<x:Y xmlns:x=\"u\"/><Info>",
        "x:Y is not known here"),
    // Systems and sections
    ("</Envelope>", "<VirtualSystem ovf:id=\"b\"/></Envelope>", "holds 2 virtual systems"),
    ("VirtualSystem ovf:id=\"web\"", "VirtualSystem ovf:id=\"...\"", "--name"),
    ("VirtualSystem ovf:id=\"web\"", "VirtualSystem", "VirtualSystem has no id"),
    ("<!--more-->", "<x:Section xmlns:x=\"urn:x\"/>", "line 44, column 5: x:Section is not known"),
    ("<!--more-->", "<x:S xmlns:x=\"urn:x\" ovf:required=\"true\"/>", "x:S is not known"),
    ("<!--more-->", "<x:S xmlns:x=\"urn:x\" ovf:required=\"maybe\"/>", "true or false"),
    ("<!--more-->", "<EncryptionSection/>", "EncryptionSection is not known"),
    ("</References>", "</References><SharedDiskSection/>", "SharedDiskSection is not known"),
    // Monitoring, beside the table below
    ("<!--more-->", "<sj:MonitoringSection xmlns:sj=\"https://sojourn.example/ovf/1\"/>\
        <sj:MonitoringSection xmlns:sj=\"https://sojourn.example/ovf/1\"/>", "a second sj:MonitoringSection"),
    ("<!--more-->", "<c:KPISection ovf:required=\"false\" xmlns:c=\"http://schemas.telefonica.com/claudia/ovf\">\
        <c:KPI c:KPIname=\"a b\"/></c:KPISection>", "the KPI's name is \"a b\""),
    ("<!--more-->", "<c:ElasticArraySection xmlns:c=\"http://schemas.telefonica.com/claudia/ovf\">\
        <c:Rule><c:KPIName>q</c:KPIName><c:Quota>lots</c:Quota></c:Rule></c:ElasticArraySection>", "Quota is \"lots\""),
    ("<!--more-->", "<c:ElasticArraySection xmlns:c=\"http://schemas.telefonica.com/claudia/ovf\">\
        <c:Rule><c:KPIName>q</c:KPIName></c:Rule></c:ElasticArraySection>", "has no Quota"),
    // Restrictions
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:OnlyOnSundays/></sj:RestrictionsSection>", "restriction sj:OnlyOnSundays"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:NoDelegation unless=\"cheap\"/></sj:RestrictionsSection>", "restriction sj:NoDeleg"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:NoDelegation>false</sj:NoDelegation></sj:RestrictionsSection>", "leave it out"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:Country>Mars</sj:Country></sj:RestrictionsSection>", "two capital letters"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:MaxPricePerHour>free</sj:MaxPricePerHour></sj:RestrictionsSection>", "1.250"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:Apart>from me</sj:Apart></sj:RestrictionsSection>", "63 printable"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        <sj:Apart>db</sj:Apart><sj:Apart>web</sj:Apart></sj:RestrictionsSection>", "second"),
    ("<!--more-->", "<sj:RestrictionsSection xmlns:sj=\"https://sojourn.example/ovf/1\">\
        by word of mouth</sj:RestrictionsSection>", "restriction sj:RestrictionsSection"),
    ("<!--more-->", "<sj:RestrictionsSection ovf:required=\"false\" \
        xmlns:sj=\"https://sojourn.example/ovf/2\"/>", "an unknown restriction is a refusal"),
    ("</References>", "</References><sj:RestrictionsSection \
        xmlns:sj=\"https://sojourn.example/ovf/1\"/>", "an unknown restriction is a refusal"),
];

/// What stands in a monitoring section, on a line of its own, and what the error must say.
#[rustfmt::skip]
const MONITORING: &[(&str, &str)] = &[
    ("<sj:Monitor/>", "line 45, column 1: sj:Monitor has no measure"),
    ("<sj:Monitor measure=\"cpu\"/>", "measure is \"cpu\"; a measure is cpu_time"),
    ("<sj:Monitor measure=\"we'b.users\"/>", "a KPI is FILE.COLUMN"),
    ("<sj:Monitor measure=\"a.b\" intervalMs=\"-1\"/>", "milliseconds are expected"),
    ("<sj:Monitor measure=\"a.b\" intervalMs=\"4294967296\"/>", "milliseconds are expected"),
    ("<sj:Monitor measure=\"a.b\" deliveryMs=\"0\" when=\"&gt; 1\"/>", "exclude each other"),
    ("<sj:Monitor measure=\"a.b\" when=\"1\"/>", "a condition is a comparison"),
    ("<sj:Monitor measure=\"a.b\" format=\"mode\"/>", "a format is raw, min, max"),
    ("<sj:Monitor measure=\"a.b\" sealed=\"maybe\"/>", "true or false is expected"),
    ("<sj:Monitor measure=\"a.b\" every=\"5\"/>", "the attribute every is not known"),
    ("<sj:Monitor measure=\"encrypted/a\" format=\"mean\"/>", "a whole file"),
    ("<sj:Monitor measure=\"encrypted/a b\"/>", "encrypted/FILE"),
    ("<sj:SealingKey>AAAA</sj:SealingKey>", "line 45, column 1: SealingKey is \"AAAA\""),
    ("<sj:Alarm/>", "sj:Alarm is not known here"),
];

#[test]
fn a_hostile_descriptor_is_refused_with_the_reason() {
    for (from, to, wanted) in DESCRIPTORS {
        refused(from, to, wanted);
    }
}

#[test]
fn a_monitoring_section_that_makes_no_sense_is_refused_with_line_and_reason() {
    for (inner, wanted) in MONITORING {
        let section = format!(
            "<sj:MonitoringSection xmlns:sj=\"https://sojourn.example/ovf/1\">\n\
             {inner}</sj:MonitoringSection>"
        );
        refused("<!--more-->", &section, wanted);
    }
}

fn refused(from: &str, to: &str, wanted: &str) {
    let story = match open_text(&good_but(from, to)) {
        Ok(_) => panic!("{to:?} was taken"),
        Err(error) => story(&error),
    };
    assert!(story.contains(wanted), "{to:?} gave {story:?}, without {wanted:?}");
}

#[test]
fn a_descriptor_beyond_a_limit_is_refused_quickly() {
    let started = std::time::Instant::now();
    let attributes: String = (0..200_000).map(|at| format!(" a{at}=''")).collect();
    let namespaces: String = (0..50).map(|at| format!(" xmlns:n{at}='u{at}'")).collect();
    let cases = [
        ("<a>".repeat(100_000) + &"</a>".repeat(100_000), "levels of elements"),
        ("<a/>".repeat(100_000), "elements"),
        (format!("<a{attributes}/>"), "attributes of one element"),
        (format!("<a{namespaces}/>").repeat(6), "namespace declarations"),
        (" ".repeat(5 << 20), "has more than 4194304 bytes"),
        ("&lol;".repeat(100_000), "the entity \"lol\""),
    ];
    for (inside, wanted) in cases {
        let text = good_but("<!--more-->", &inside);
        let story = story(&open_text(&text).unwrap_err());
        assert!(story.contains(wanted), "{story:?}, without {wanted:?}");
    }
    // A parser whose cost is quadratic in any of these would take minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn too_much_hardware_is_refused() {
    let item = |kind, more: &str| {
        format!("<Item><rasd:ResourceType>{kind}</rasd:ResourceType>{more}</Item>")
    };
    let card = item(10, "<rasd:Connection>lan</rasd:Connection>").repeat(20);
    let end = "</VirtualHardwareSection>";
    let text = good_but(end, &(card + end));
    assert!(story(&open_text(&text).unwrap_err()).contains("more than 16 network cards"));
    let file = "<rasd:HostResource>ovf:/file/file1</rasd:HostResource>";
    let text =
        good_but(end, &(item(17, file).repeat(10_000) + end)).replace("disk.raw", "disk.img");
    assert!(story(&open_text(&text).unwrap_err()).contains("more than 32 disks"));
    let devices = item(35, "").repeat(500);
    let package = open_text(&good_but(end, &(devices + end))).unwrap();
    assert!(package.warnings.len() < 70, "{} warnings", package.warnings.len());
    assert!(package.warnings.iter().any(|warning| warning.contains("more warnings")));
}

#[test]
fn a_hostile_archive_is_refused_with_the_reason() {
    let ovf = entry("a.ovf", b'0', GOOD.as_bytes());
    let disk = entry("disk.raw", b'0', &DISK);
    let after = |more: &[u8]| [ovf.as_slice(), more, &disk, &[0; 1024]].concat();
    let mut huge = entry("disk.raw", b'0', b"");
    // 2^62 bytes, in base 256.
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]);
    let sum: u32 =
        huge[..148].iter().chain(&huge[156..512]).map(|&b| u32::from(b)).sum::<u32>() + 256;
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let pax = |record: &str| entry("pax", b'x', record.as_bytes());
    let record = |kind, record: &str| entry("pax", kind, make::record(record).as_bytes());
    let many: Vec<u8> = (0..80).flat_map(|at| entry(&format!("f{at}"), b'0', b"")).collect();
    let cases = [
        ([disk.as_slice(), &ovf, &[0; 1024]].concat(), "it must be the .ovf descriptor"),
        (vec![0; 1024], "is empty"),
        (b"PK\x03\x04".repeat(512), "damaged, or this is no tar"),
        (after(&entry("../../etc/cron.d/x", b'0', b"x")), "must stay inside"),
        (after(&entry("/etc/passwd", b'0', b"x")), "is absolute"),
        (after(&entry("a/./b", b'0', b"x")), "must stay inside"),
        (after(&entry("c:\\windows", b'0', b"x")), "backslash"),
        (after(&entry("link", b'2', b"")), "a symbolic link"),
        (after(&entry("link", b'1', b"")), "a hard link"),
        (after(&entry("folder", b'5', b"")), "a folder"),
        (after(&entry("null", b'3', b"")), "a device"),
        (after(&entry("pipe", b'6', b"")), "a named pipe"),
        (after(&entry("././@LongLink", b'L', b"../x\0")), "a GNU long name"),
        (after(&entry("sparse", b'S', b"")), "a GNU sparse file"),
        (after(&entry("what", b'?', b"")), "of an unknown type"),
        (after(&disk), "two entries are named \"disk.raw\""),
        (after(&record(b'x', "path=../evil")), "must stay inside"),
        (after(&record(b'x', "GNU.sparse.major=1")), "a GNU sparse file"),
        (after(&pax("99 path=x\n")), "is damaged"),
        (after(&pax("5 path=x\n")), "is damaged"),
        (after(&pax("-1 path=x\n")), "is damaged"),
        (after(&record(b'x', "size=18446744073709551615")), "ends within"),
        (after(&record(b'g', "path=x")), "for all files"),
        (after(&entry("pax", b'x', &[b'1'; 100_000])), "is damaged"),
        ([ovf.as_slice(), &huge].concat(), "ends within \"disk.raw\""),
        (after(&many), "more than 64 files"),
    ];
    for (bytes, wanted) in cases {
        let story = match open_archive(&bytes) {
            Ok(_) => panic!("an archive was taken that must give {wanted:?}"),
            Err(error) => story(&error),
        };
        assert!(story.contains(wanted), "{story:?}, without {wanted:?}");
    }
}

#[test]
fn plain_extended_headers_and_sizes_beyond_octal_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let size: u64 = 9 << 30;
    let text = GOOD
        .replace("\"1024\"", &format!("\"{size}\""))
        .replace("disk.raw", "a rather long name.raw");
    let mut bytes = entry("./a.ovf", b'0', text.as_bytes());
    let records = make::record("path=a rather long name.raw") + &make::record("mtime=1.5");
    bytes.extend(entry("pax", b'x', records.as_bytes()));
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    let length = bytes.len() as u64 + size;
    let path = write(&folder, "a.ova", bytes);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
    let package = open(&path).unwrap();
    assert_eq!(package.disks[0].file.as_deref(), Some("a rather long name.raw"));
    assert_eq!(package.disks[0].capacity, Bytes(size));

    let small = Limits { package: Bytes(size), ..Limits::default() };
    let error = Package::open(&path, &small, None, &mut || [2; 6]).unwrap_err();
    assert!(story(&error).contains("are allowed"), "{}", story(&error));
    let small = Limits { capacity: Bytes(size - 1), ..Limits::default() };
    let error = Package::open(&path, &small, None, &mut || [2; 6]).unwrap_err();
    assert!(story(&error).contains("are allowed"), "{}", story(&error));
}

#[test]
fn a_manifest_that_does_not_fit_the_package_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ovf: (&str, &[u8]) = ("a.ovf", GOOD.as_bytes());
    let disk: (&str, &[u8]) = ("disk.raw", &DISK);
    write(&folder, "disk.raw", DISK);
    let path = write(&folder, "a.ovf", GOOD);
    for (lines, wanted) in [
        (manifest(&[ovf]), "no digest for \"disk.raw\""),
        (manifest(&[disk]), "no digest for \"a.ovf\""),
        (manifest(&[("a.ovf", b"x"), disk]), "\"a.ovf\" does not match"),
        (manifest(&[ovf, disk, ("more", b"")]), "\"more\", which is not in the package"),
        (manifest(&[ovf, disk, disk]), "twice"),
        ("x".repeat(100_000), "more than 65536 bytes"),
        ("MD5(a.ovf)= 00".to_owned(), "\"MD5\""),
        (manifest(&[ovf, disk, ("../a.ovf", b"")]), "must stay inside"),
    ] {
        write(&folder, "a.mf", lines);
        let story = story(&open(&path).unwrap_err());
        assert!(story.contains(wanted), "{story:?}, without {wanted:?}");
    }
}

#[test]
fn a_disk_that_does_not_match_its_digest_is_not_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let lines = manifest(&[("a.ovf", GOOD.as_bytes()), ("disk.raw", &[0; 1024])]);
    let files: [(&str, &[u8]); 3] =
        [("a.ovf", GOOD.as_bytes()), ("a.mf", lines.as_bytes()), ("disk.raw", &DISK)];
    let package = open(&write(&folder, "a.ova", archive(&files))).unwrap();
    let error = package.verify_manifest().unwrap_err();
    assert!(matches!(&error, VerifyError::Digest(file) if file == "disk.raw"), "{error}");
    let target = folder.path().join("out");
    let error = package.extract_disk(0, &target).unwrap_err();
    assert!(error.to_string().contains("does not match"), "{error}");
    assert!(!target.exists(), "a refused disk was left behind");
    assert!(package.extract_disk(1, &target).is_err());
}

#[test]
fn extraction_never_overwrites_and_notices_a_file_that_shrank() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "disk.raw", DISK);
    let package = open(&write(&folder, "a.ovf", GOOD)).unwrap();
    let existing = write(&folder, "precious", b"precious");
    assert!(package.extract_disk(0, &existing).is_err());
    assert_eq!(fs::read(&existing).unwrap(), b"precious");
    let target = folder.path().join("out");
    package.extract_disk(0, &target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), DISK);
    fs::remove_file(&target).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("disk.raw"))
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(package.extract_disk(0, &target).is_err());
    assert!(!target.exists());
}

#[test]
fn a_link_that_leaves_the_folder_is_refused_and_one_that_stays_is_followed() {
    let outside = tempfile::tempdir().unwrap();
    let secret = write(&outside, "secret", DISK);
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.ovf", GOOD);
    let disk = folder.path().join("disk.raw");
    symlink(&secret, &disk).unwrap();
    let story = story(&open(&path).unwrap_err());
    assert!(story.contains("leads out of the package's folder"), "{story}");
    fs::remove_file(&disk).unwrap();
    write(&folder, "real.raw", DISK);
    symlink("real.raw", &disk).unwrap();
    open(&path).unwrap();
    fs::remove_file(&disk).unwrap();
    fs::create_dir(&disk).unwrap();
    assert!(make::story(&open(&path).unwrap_err()).contains("not a regular file"));
}

#[test]
fn a_named_pipe_is_refused_without_waiting_for_a_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.ovf", GOOD);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("disk.raw"), pipe, mode, 0).unwrap();
    assert!(story(&open(&path).unwrap_err()).contains("not a regular file"));
}

#[test]
fn other_files_are_no_packages() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "a.vmdk", "a.ovf.txt", "ova"] {
        assert!(story(&open(&write(&folder, name, GOOD)).unwrap_err()).contains("is no package"));
    }
    assert!(open(&folder.path().join("missing.ovf")).is_err());
    assert!(open(&folder.path().join("missing.ova")).is_err());
    assert!(story(&open_text("\u{fffe}").unwrap_err()).contains("not well-formed"));
    let latin = write(&folder, "latin.ovf", b"<a>\xe4</a>");
    assert!(story(&open(&latin).unwrap_err()).contains("not UTF-8"));
}

#[test]
fn no_truncation_of_an_archive_panics_or_loses_contents() {
    let good = good_archive();
    let contents = good.len() - 1024;
    let folder = tempfile::tempdir().unwrap();
    for length in 0..good.len() {
        let taken = open(&write(&folder, "a.ova", &good[..length]));
        let taken = taken.is_ok_and(|package| package.verify_manifest().is_ok());
        assert!(!taken || length >= contents, "{length} of {} bytes were taken", good.len());
    }
}

#[test]
fn no_flipped_bit_of_a_file_is_accepted() {
    let good = good_archive();
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = good.clone();
    // Headers are damaged as well, for panics; what must not pass are the files' own bytes.
    let find = |part: &[u8]| good.windows(part.len()).position(|found| found == part).unwrap();
    let ranges = [(find(GOOD.as_bytes()), GOOD.len()), (find(&DISK), DISK.len())];
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        let taken = open(&write(&folder, "a.ova", &bytes));
        let taken = taken.is_ok_and(|package| package.verify_manifest().is_ok());
        let in_file = ranges.iter().any(|(from, length)| (*from..from + length).contains(&at));
        assert!(!(taken && in_file), "a flipped bit in byte {at} was taken");
        bytes[at] ^= 1;
    }
}

#[test]
fn no_truncation_of_a_descriptor_panics_or_is_taken() {
    let end = GOOD.trim_end().len();
    for length in 0..end {
        assert!(open_text(&GOOD[..length]).is_err(), "{length} of {end} bytes were taken");
    }
}
