//! The state folder of a site: its layout, its making, and its lock.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use certs::{Identity, IdentityError};
use hypervisor::Instance;
use model::{Epoch, FileId, HostName, SiteKey, VmId};

use crate::config::{self, Config, ConfigError};

/// A site's state folder.
///
/// ```text
/// sojourn.toml   identity.key   journal.db   monitoring.db   admin.sock   lock   policies/
/// library/VM-EPOCH/             files of VMs that are only stored
/// hosts/HOST/vms/VM-EPOCH/      files of VMs on a host
/// hosts/HOST/run/               what the hypervisor needs while a guest exists
/// ```
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// Why a state folder cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no site there.
    #[error("{0} is not a site's folder; make one with `sojourn site init {0}`")]
    NoSite(PathBuf),
    /// There is one already.
    #[error("{0} holds a site already; nothing was changed")]
    Exists(PathBuf),
    /// Another node runs on it.
    #[error("another node runs on {0}; stop it first, two nodes would both act as this site")]
    InUse(PathBuf),
    /// Its configuration is not legal.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its identity is missing or unsafe.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The disk says no.
    #[error("cannot use {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Folder {
    /// The folder at `path`, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a new site here: folder, identity, configuration.
    pub fn init(&self, config: &Config) -> Result<Identity, FolderError> {
        if self.config_file().exists() || self.0.join(certs::KEY_FILE).exists() {
            return Err(FolderError::Exists(self.0.clone()));
        }
        // Guests run as another user and must be able to pass, not to look.
        let make = |path: &Path| {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o711).create(path).map_err(|e| self.io(path, e))
        };
        make(&self.0)?;
        make(&self.0.join("library"))?;
        make(&self.0.join("hosts"))?;
        make(&self.policies())?;
        let identity = Identity::create(&self.0)?;
        let path = self.config_file();
        fs::write(&path, config.to_toml()).map_err(|e| self.io(&path, e))?;
        Ok(identity)
    }

    /// Gives the site a new identity key; the old one and the new. No node may run meanwhile.
    pub fn rotate_key(&self) -> Result<(SiteKey, SiteKey), FolderError> {
        self.config()?;
        let _lock = self.lock()?;
        let old = Identity::load(&self.0)?.site_key();
        Ok((old, Identity::renew(&self.0)?.site_key()))
    }

    /// Its configuration.
    pub fn config(&self) -> Result<Config, FolderError> {
        if !self.config_file().exists() {
            return Err(FolderError::NoSite(self.0.clone()));
        }
        Ok(Config::load(&self.config_file())?)
    }

    /// Takes the lock that keeps a second node away; it ends with the process.
    pub(crate) fn lock(&self) -> Result<File, FolderError> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| self.io(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(self.0.clone())),
            Err(TryLockError::Error(source)) => Err(self.io(&path, source)),
        }
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.0.join(config::FILE)
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal.db")
    }

    pub(crate) fn monitoring(&self) -> PathBuf {
        self.0.join("monitoring.db")
    }

    /// The site's own policies, which override the defaults file by file.
    pub fn policies(&self) -> PathBuf {
        self.0.join("policies")
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.0.join("library")
    }

    /// Where the files of one stay lie.
    pub(crate) fn stay(&self, host: &HostName, vm: VmId, epoch: Epoch) -> PathBuf {
        let name = format!("{vm}-{epoch}");
        if host.as_str() == protocol::LIBRARY {
            self.library().join(name)
        } else {
            self.host(host).join("vms").join(name)
        }
    }

    /// The stays on a host whose run state is saved.
    pub(crate) fn saved(&self, host: &HostName) -> Vec<Instance> {
        // Without the folder the host never had a VM.
        let Ok(stays) = fs::read_dir(self.host(host).join("vms")) else { return Vec::new() };
        let has_state = |stay: &fs::DirEntry| stay.path().join(FileId::STATE.file_name()).is_file();
        let stays = stays.flatten().filter(has_state);
        stays.filter_map(|stay| stay.file_name().to_str()?.parse().ok()).collect()
    }

    /// Where there are files of stays of a VM: host, or the library, and epoch.
    pub(crate) fn stays_of(&self, vm: VmId) -> Vec<(HostName, Epoch)> {
        let hosts = fs::read_dir(self.0.join("hosts")).into_iter().flatten().flatten();
        let hosts = hosts.filter_map(|host| {
            Some((host.file_name().to_str()?.parse().ok()?, host.path().join("vms")))
        });
        let places = hosts.chain([(protocol::library(), self.library())]);
        let stays = places.flat_map(|(host, folder): (HostName, PathBuf)| {
            let stays = fs::read_dir(folder).into_iter().flatten().flatten();
            stays.filter_map(move |stay| {
                let instance: Instance = stay.file_name().to_str()?.parse().ok()?;
                (instance.vm == vm).then(|| (host.clone(), instance.epoch))
            })
        });
        stays.collect()
    }

    pub(crate) fn host(&self, host: &HostName) -> PathBuf {
        self.0.join("hosts").join(host.as_str())
    }

    /// Makes the folder of a stay.
    pub(crate) fn make_stay(&self, path: &Path) -> Result<(), FolderError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711).create(path).map_err(|e| self.io(path, e))
    }

    fn io(&self, path: &Path, source: std::io::Error) -> FolderError {
        FolderError::Io { path: path.to_owned(), source }
    }
}
