//! Files that appear complete or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Instance};

/// The name that `path` has while it is written, in the same folder, so that a rename completes it.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Gives a file that is complete and synced its final name, durably or not at all.
pub(crate) fn complete(partial: &Path, path: &Path) -> Result<(), Error> {
    fs::rename(partial, path).map_err(Error::io("rename to", path))?;
    sync_folder_of(path).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Makes a file's content durable; how long that takes depends on the file.
pub(crate) async fn sync(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    tokio::task::spawn_blocking(move || file.sync_all())
        .await
        .expect("syncing does not panic")
        .map_err(Error::io("sync", path))
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))
}

/// Writes a small file so that a reader sees its old or its new content, also after a power cut.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let temporary = partial(path);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    if let Err(source) = written {
        let _ = fs::remove_file(&temporary);
        return Err(Error::Io { doing: "write", path: path.to_owned(), source });
    }
    complete(&temporary, path)
}

/// What `parse` makes of a file of the kernel's.
pub(crate) fn read<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    parse(&text).ok_or_else(|| {
        let why = "the kernel writes it in another way than proc(5) says";
        Error::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, why))
    })
}

/// Removes a file; one that is not there is removed.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { doing: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes a folder and all in it; one that is not there is removed.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { doing: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Checks that a disk is a plain file; a link could lead out of the VM's folder.
pub(crate) fn check_disk(path: &Path) -> Result<fs::Metadata, Error> {
    let error = |source| Error::Disk { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(error)?;
    if metadata.is_file() {
        Ok(metadata)
    } else {
        let why = "it is not a plain file";
        Err(Error::Disk {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, why),
        })
    }
}

/// The instances that have a folder in `runtime`, ascending. Other entries are not ours.
pub(crate) fn instances(runtime: &Path) -> Result<Vec<Instance>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(runtime).map_err(Error::io("read folder", runtime))? {
        let entry = entry.map_err(Error::io("read folder", runtime))?;
        if let Some(instance) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push(instance);
        }
    }
    found.sort_unstable();
    Ok(found)
}
