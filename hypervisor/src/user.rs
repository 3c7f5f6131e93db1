//! The unprivileged user that guests, and whoever reads hostile images, run as.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::Error;

/// A user of this machine that guests' processes run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Who guests run as when we are root; none when we are not, and they run as we do.
pub(crate) fn guest_user(name: Option<&str>) -> Result<Option<User>, Error> {
    let root = rustix::process::geteuid().is_root();
    if !root && name.is_none() {
        return Ok(None);
    }
    let passwd = Path::new("/etc/passwd");
    let text = fs::read_to_string(passwd).map_err(Error::io("read", passwd))?;
    let name = name.unwrap_or("nobody");
    let user = parse_user(&text, name).ok_or_else(|| {
        Error::Configuration(format!(
            "no user {name} in /etc/passwd to run guests as: \
             adduser --system --no-create-home {name}, or configure another user"
        ))
    })?;
    if user.uid == 0 {
        return Err(Error::Configuration(format!(
            "guests do not run as root: configure another user than {name}"
        )));
    }
    if !root && user.uid != rustix::process::geteuid().as_raw() {
        return Err(Error::Configuration(format!(
            "only root can run guests as {name}: start as root or take user out of the configuration"
        )));
    }
    Ok(root.then_some(user))
}

fn parse_user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let &[found, _, uid, gid, ..] = fields.as_slice() else { return None };
        (found == name).then_some(())?;
        Some(User { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

impl User {
    /// Checks that the user can come to a folder through all folders above it, and through itself.
    pub(crate) fn check_reach(&self, folder: &Path) -> Result<(), Error> {
        for above in folder.ancestors() {
            let metadata = fs::metadata(above).map_err(Error::io("look at", above))?;
            if !self.may_enter(&metadata) {
                let above = above.display();
                return Err(Error::Configuration(format!(
                    "user {} runs the guests and cannot enter {above}, on the way to {}: \
                     run chmod o+x {above}, or keep the VMs elsewhere",
                    self.name,
                    folder.display()
                )));
            }
        }
        Ok(())
    }

    /// Makes the user the owner of a file or folder, which must not be a link.
    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        set_owner(path, self.uid, self.gid)
    }

    fn may_enter(&self, metadata: &fs::Metadata) -> bool {
        let bit = if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }
}

/// Changes the owner of a file or folder, which must not be a link.
pub(crate) fn set_owner(path: &Path, uid: u32, gid: u32) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|fd| fchown(fd, Some(uid), Some(gid)))
        .map_err(Error::io("change the owner of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody2:x:7:7::/:/\nnobody:x:65534:65533::/:/";
        let user = parse_user(passwd, "nobody").unwrap();
        assert_eq!((user.uid, user.gid), (65534, 65533));
        assert_eq!(parse_user(passwd, "nobod"), None);
    }

    #[test]
    fn a_closed_folder_on_the_way_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let user = User { name: "nobody".to_owned(), uid: 65534, gid: 65534 };
        let error = user.check_reach(&inner).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod o+x {}", folder.path().display())), "{error}");
    }
}
