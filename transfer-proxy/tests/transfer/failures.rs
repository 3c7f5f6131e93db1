use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::{Bytes, Carrier, FileId};
use transfer_proxy::{Event, Pull, TransferProxy};

use crate::site::{MIB, Move, Site};

/// A served transfer of a full disk, its manifest made.
async fn ready_to_send(carrier: Carrier, mib: u64) -> (Site, Site, Move) {
    let (mut source, target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(mib)]);
    source.sent().await;
    (source, target, it)
}

/// Pulls with altered terms; the errors at the source and at the target.
async fn errors_of(
    source: &mut Site,
    target: &mut Site,
    it: &Move,
    alter: impl FnOnce(&mut Pull),
) -> (String, String) {
    let mut pull = it.pull(source.proxy.uri());
    alter(&mut pull);
    target.proxy.pull(pull).unwrap();
    (source.failed_for_good().await, target.failed_for_good().await)
}

async fn a_chunk_that_changed_after_the_manifest_fails_both_ends(carrier: Carrier) {
    let (mut source, mut target, it) = ready_to_send(carrier, 6).await;
    let disk = OpenOptions::new().write(true).open(it.source_file(FileId::disk(0))).unwrap();
    disk.write_all_at(b"!", 4 * MIB + 99).unwrap();
    let errors = errors_of(&mut source, &mut target, &it, |_| ()).await;
    assert!(errors.0.starts_with("disk0.raw changed while it was sent"), "{errors:?}");
    assert!(errors.1.starts_with("the source gave up: disk0.raw changed"), "{errors:?}");
    // Later sessions are told the same until the files are provided anew.
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    assert!(target.failed_for_good().await.contains("changed"));
    source.proxy.provide(it.migration, vec![(FileId::disk(0), it.source_file(FileId::disk(0)))]);
    let digest = source
        .wait(|event| match event {
            Event::Sent { digest, .. } => Some(*digest),
            _ => None,
        })
        .await;
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    assert_eq!(target.received().await.0, digest);
}

async fn a_file_that_became_shorter_fails_both_ends(carrier: Carrier) {
    let (mut source, mut target, it) = ready_to_send(carrier, 3).await;
    let disk = OpenOptions::new().write(true).open(it.source_file(FileId::disk(0))).unwrap();
    disk.set_len(2 * MIB + 5).unwrap();
    let errors = errors_of(&mut source, &mut target, &it, |_| ()).await;
    assert!(errors.0.contains("disk0.raw changed"), "{errors:?}");
    assert!(errors.1.contains("disk0.raw changed"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_not_agreed_on_is_refused_before_anything_is_written() {
    let (mut source, mut target, it) = ready_to_send(Carrier::Quic, 1).await;
    let errors =
        errors_of(&mut source, &mut target, &it, |pull| pull.expected = vec![FileId::STATE]).await;
    assert_eq!(errors.1, "disk0.raw is not among the files agreed on");
    assert_eq!(errors.0, "the target gave up: disk0.raw is not among the files agreed on");
    it.assert_nothing_written();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_budget_is_refused_before_anything_is_written() {
    let (mut source, mut target, it) = ready_to_send(Carrier::Quic, 2).await;
    let budget = Bytes(2 * MIB - 1);
    let errors = errors_of(&mut source, &mut target, &it, |pull| pull.budget = budget).await;
    assert_eq!(errors.1, "2.0 MiB to move, 2.0 MiB agreed on");
    it.assert_nothing_written();
}

async fn a_token_carries_no_more_than_its_byte_budget(carrier: Carrier) {
    let mut source = Site::start().await;
    let it = Move::over(carrier);
    let mut serve = it.serve();
    serve.byte_budget = Bytes::mib(2);
    source.proxy.serve(serve).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(3)]);
    assert_eq!(source.failed_for_good().await, "3.0 MiB to move, 2.0 MiB agreed on");
    source.proxy.provide(it.migration, vec![it.full_disk(2)]);
    let mut target = Site::start().await;
    source.sent().await;
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    target.received().await;
    target.proxy.shut_down().await;
    // The content may travel once only.
    let mut target = Site::start().await;
    let errors = errors_of(&mut source, &mut target, &it, |pull| {
        pull.folder = it.target().with_file_name("again");
    })
    .await;
    assert!(errors.0.contains("more content was asked for than agreed on"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_there_or_not_served_fail_at_once_and_no_path_crosses() {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    source.proxy.provide(it.migration, vec![]);
    assert_eq!(source.failed_for_good().await, "files of a transfer that is not served");
    source.proxy.serve(it.serve()).unwrap();
    let missing = it.source_file(FileId::disk(0));
    source.proxy.provide(it.migration, vec![(FileId::disk(0), missing.clone())]);
    let error = source.failed_for_good().await;
    assert!(error.contains(missing.to_str().unwrap()), "{error}");
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let error = target.failed_for_good().await;
    assert_eq!(error, "the source gave up: disk0.raw cannot be read at the source");
}

/// A file system of a few MiB, for as long as the value lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .output()
            .map_err(|error| error.to_string())?;
        if mounted.status.success() {
            Ok(Self(folder))
        } else {
            Err(String::from_utf8_lossy(&mounted.stderr).into_owned())
        }
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("vm")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
async fn a_full_disk_at_the_target_is_a_clear_final_failure_and_the_rest_follows_later(
    carrier: Carrier,
) {
    let disk = match SmallDisk::mount(4) {
        Ok(disk) => disk,
        Err(reason) => {
            let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|what| what == "root"), "no mount: {reason}");
            println!("skipped, a small file system cannot be mounted: {reason}");
            return;
        }
    };
    let (mut source, mut target, it) = ready_to_send(carrier, 9).await;
    let errors = errors_of(&mut source, &mut target, &it, |pull| pull.folder = disk.folder()).await;
    assert!(errors.1.starts_with("the target's storage is full"), "{errors:?}");
    assert!(errors.1.contains(disk.folder().to_str().unwrap()), "{errors:?}");
    let told = "the target gave up: the target's storage is full; \
                free some space and start the transfer again";
    assert_eq!(errors.0, told);
    grow(&disk);
    let mut pull = it.pull(source.proxy.uri());
    pull.folder = disk.folder();
    target.proxy.pull(pull).unwrap();
    target.received().await;
    let source_file = std::fs::read(it.source_file(FileId::disk(0))).unwrap();
    assert!(std::fs::read(disk.folder().join("disk0.raw")).unwrap() == source_file);
}

fn grow(disk: &SmallDisk) {
    let root: &Path = disk.0.path();
    let grown = Command::new("mount").args(["-o", "remount,size=32m"]).arg(root).status();
    assert!(grown.unwrap().success());
}

over_each_carrier!(
    a_chunk_that_changed_after_the_manifest_fails_both_ends,
    a_file_that_became_shorter_fails_both_ends,
    a_token_carries_no_more_than_its_byte_budget,
    a_full_disk_at_the_target_is_a_clear_final_failure_and_the_rest_follows_later,
);
