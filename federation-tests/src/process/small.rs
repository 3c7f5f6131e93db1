//! A small file system, to be filled: what a full disk does to a site. It needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::missing;

/// A tmpfs, unmounted when it is dropped.
pub struct Small(PathBuf);

impl Small {
    /// Puts a file system of `kib` KiB over a folder, which is made; none where that cannot be done.
    pub fn over(folder: &Path, kib: u32) -> Option<Self> {
        fs::create_dir_all(folder).expect("its parent is the test's own");
        let size = format!("size={kib}k,mode=0711");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(folder.to_owned())),
            Ok(output) => {
                missing("mount", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                missing("mount", &format!("mount: {error}"));
                None
            }
        }
    }

    /// Takes all the space that there is.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("a new file system has room for a name");
        for size in [64 << 10, 4096, 1] {
            let block = vec![7; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Gives the space back.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled before");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
