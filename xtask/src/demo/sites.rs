//! The demo's sites: real nodes, each with a folder and a process of its own.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::users::section;
use crate::shell::{read, root};

/// How long a node may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// All sites of the demo; whatever happens, nothing of them runs on.
pub(super) struct Sites {
    folder: PathBuf,
    program: PathBuf,
    nodes: Vec<(String, Child)>,
    keep: bool,
}

impl Sites {
    pub(super) fn new(keep: bool) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), PathBuf::from);
        let folder = std::env::temp_dir().join(format!("sojourn-demo-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        // Guests run as another user and must be able to pass.
        fs::set_permissions(&folder, Permissions::from_mode(0o711))?;
        Ok(Self { folder, program: target.join("debug/sojourn"), nodes: Vec::new(), keep })
    }

    /// Makes a site with a policy `trigger` of its own, if wanted, starts its node, and adds two
    /// hosts. Returns its fingerprint.
    pub(super) fn make(&mut self, name: &str, trigger: Option<&str>) -> Result<String> {
        let made = self.json(name, &["site", "init", "--name", name, "--listen", "127.0.0.1:0"])?;
        if let Some(rule) = trigger {
            self.write(&format!("{name}/policies/trigger.rego"), rule)?;
        }
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        let node = Command::new(&self.program)
            .args(["--site", &self.at(name), "site", "run"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.nodes.push((name.to_owned(), node));
        let until = Instant::now() + START_LIMIT;
        while self.text(name, &["site", "show"]).is_err() {
            let (_, node) = self.nodes.last_mut().expect("just pushed");
            if let Some(status) = node.try_wait()? {
                bail!("the node of {name} ended with {status}");
            }
            ensure!(Instant::now() < until, "the node of {name} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        for host in ["1", "2"] {
            let host = format!("{name}-{host}");
            self.text(name, &["host", "add", &host, "--cpus", "2", "--memory", "512M"])?;
        }
        Ok(made["fingerprint"].as_str().context("no fingerprint")?.to_owned())
    }

    /// Lets `joiner` join the site that invites it.
    pub(super) fn join(&self, joiner: &str, inviter: &str) -> Result<()> {
        let invitation = self.json(inviter, &["peer", "invite"])?;
        let ticket = invitation["ticket"].as_str().context("no ticket")?;
        self.text(joiner, &["peer", "join", ticket]).map(drop)
    }

    /// The guest's image as a plain OVA.
    pub(super) fn pack(&self, image: &Path) -> Result<String> {
        let size = fs::metadata(image)?.len();
        let ovf = OVF.replace("SIZE", &size.to_string()).replace("SECTION", &section(None));
        fs::write(self.folder.join("guest.ovf"), ovf)?;
        let disk = self.folder.join("guest-disk1.raw");
        read(Command::new("cp").arg("--sparse=always").arg(image).arg(&disk))?;
        let in_folder = |program: &str| {
            let mut command = Command::new(program);
            command.current_dir(&self.folder);
            command
        };
        let sums = read(in_folder("sha256sum").args(["--tag", "guest.ovf", "guest-disk1.raw"]))?;
        // `SHA256 (file) = hex` is almost what OVF wants.
        let manifest = sums.replace("SHA256 (", "SHA256(").replace(") = ", ")= ");
        fs::write(self.folder.join("guest.mf"), manifest)?;
        let files = ["guest.ovf", "guest.mf", "guest-disk1.raw"];
        read(in_folder("tar").args(["--format=ustar", "-cf", "guest.ova"]).args(files))?;
        Ok(self.folder.join("guest.ova").display().to_string())
    }

    /// What a command at a site prints.
    pub(super) fn text(&self, site: &str, args: &[&str]) -> Result<String> {
        read(Command::new(&self.program).args(["--quiet", "--site", &self.at(site)]).args(args))
    }

    /// A command at a site that goes on until it is ended; its output is to be read.
    pub(super) fn follow(&self, site: &str, args: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(["--quiet", "--site", &self.at(site)]).args(args);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }

    /// Puts a file into the demo's folder, or a site's.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// What a command at a site prints for programs.
    pub(super) fn json(&self, site: &str, args: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["-o", "json"].into_iter().chain(args.iter().copied()).collect();
        Ok(serde_json::from_str(&self.text(site, &all)?)?)
    }

    fn at(&self, site: &str) -> String {
        self.folder.join(site).display().to_string()
    }

    pub(super) fn print_logs(&self) {
        for (name, _) in &self.nodes {
            let log = fs::read_to_string(self.folder.join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("-- {name}");
            for line in &lines[lines.len().saturating_sub(15)..] {
                eprintln!("   {line}");
            }
        }
    }

    /// Ends everything and removes the folder; an error if a guest was still there.
    pub(super) fn close(&mut self) -> Result<()> {
        let stray = self.end_all();
        if self.keep {
            println!("the sites' folder is kept: {}", self.folder.display());
        } else {
            fs::remove_dir_all(&self.folder)?;
        }
        ensure!(stray == 0, "{stray} guests were still running at the end");
        Ok(())
    }

    /// Ends nodes, and guests that outlived them. Returns how many guests there were.
    fn end_all(&mut self) -> usize {
        for (_, node) in &self.nodes {
            let _ = Command::new("kill").arg(node.id().to_string()).status();
        }
        for (_, mut node) in self.nodes.drain(..) {
            let _ = node.wait();
        }
        let mark = self.folder.display().to_string();
        let guests = read(Command::new("pgrep").args(["-f", &format!("qemu-system.*{mark}")]));
        let guests: Vec<String> =
            guests.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        for guest in &guests {
            let _ = Command::new("kill").args(["-9", guest]).status();
        }
        guests.len()
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// A plain descriptor (DMTF DSP0243): one processor, 128 MiB, one disk, no network.
const OVF: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References>
    <File ovf:id="file1" ovf:href="guest-disk1.raw" ovf:size="SIZE"/>
  </References>
  <DiskSection>
    <Info>The guest's disk</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="SIZE"
        ovf:format="http://en.wikipedia.org/wiki/Byte"/>
  </DiskSection>
  <VirtualSystem ovf:id="guest">
    <Info>A guest that counts</Info>
    <VirtualHardwareSection>
      <Info>What it needs</Info>
      <Item>
        <rasd:ElementName>One processor</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>128 MiB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>128</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:ElementName>Its disk</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
    SECTION
  </VirtualSystem>
</Envelope>
"#;
