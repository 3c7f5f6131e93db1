//! A virtual machine of its own for a test, which leaves nothing behind.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// For anything that a guest is waited for, on a machine that emulates it and does more besides.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at a guest's console.
const LOOK: Duration = Duration::from_millis(50);

/// Whether the machine has the port that `kpi-fs` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Open,
    None,
}

/// A QEMU, or its disk while it is off.
pub(crate) struct Machine {
    folder: TempDir,
    port: Port,
    process: Option<Child>,
}

/// A line that the guest prints about every second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) counter: u64,
    pub(crate) uptime: u64,
    pub(crate) boot: String,
    pub(crate) since: u64,
}

impl Beat {
    fn read(line: &str) -> Option<Self> {
        let line = line.trim().strip_prefix("sojourn-guest ")?;
        let mut fields = line.split(' ').map(|field| field.split_once('='));
        let mut value = |name| {
            let (found, value) = fields.next()??;
            (found == name).then(|| value.to_owned())
        };
        Some(Self {
            counter: value("counter")?.parse().ok()?,
            uptime: value("uptime")?.parse().ok()?,
            boot: value("boot")?,
            since: value("since")?.parse().ok()?,
        })
    }
}

fn image() -> PathBuf {
    std::env::var_os("SOJOURN_GUEST_IMAGE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/disk.raw"),
        PathBuf::from,
    )
}

/// Why there can be no machine here.
fn missing() -> Option<String> {
    let image = image();
    if !image.exists() {
        return Some(format!("no guest at {}, run: cargo xtask guest-image", image.display()));
    }
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    version.err().map(|error| format!("no qemu-system-x86_64: {error}"))
}

impl Machine {
    /// A machine that is off, with a new disk; none, with the reason printed, where there can be
    /// none.
    pub(crate) fn new(port: Port) -> Option<Self> {
        if let Some(why) = missing() {
            let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "qemu"), "qemu is required: {why}");
            eprintln!("skipped: {why}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(image(), folder.path().join("disk.raw")).unwrap();
        Some(Self { folder, port, process: None })
    }

    pub(crate) fn boot(&mut self) {
        self.start(&[]);
    }

    /// Goes on from what [`Machine::save`] has saved.
    pub(crate) fn load(&mut self) {
        self.start(&["-incoming", "exec:cat <state"]);
        let mut control = Control::new(self.connect("control"));
        control.wait("query-status", "paused");
        control.run("cont", json!({}));
    }

    fn start(&mut self, more: &[&str]) {
        assert!(self.process.is_none(), "it runs already");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        // TCG: a device file for KVM proves nothing.
        command.args(["-machine", "pc-q35-7.2,accel=tcg", "-cpu", "Nehalem-v1", "-m", "128M"]);
        command.args(["-blockdev", "driver=file,node-name=file,filename=disk.raw"]);
        command.args(["-blockdev", "driver=raw,node-name=disk,file=file"]);
        command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
        command.args(["-chardev", "file,id=console,path=console,append=on"]);
        command.args(["-serial", "chardev:console"]);
        command.args(["-chardev", "socket,id=control,path=control,server=on,wait=off"]);
        command.args(["-mon", "chardev=control,mode=control"]);
        if self.port == Port::Open {
            command.args(["-device", "virtio-serial-pci"]);
            command.args(["-chardev", "socket,id=kpi,path=kpi,server=on,wait=off"]);
            command.args(["-device", "virtserialport,chardev=kpi,name=sojourn.kpi"]);
        }
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        command.args(more).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Sockets of a life before this one.
        for name in ["control", "kpi"] {
            let _ = std::fs::remove_file(self.folder.path().join(name));
        }
        self.process = Some(command.spawn().unwrap());
    }

    /// Connects to one of its sockets, which may not be there yet.
    fn connect(&self, socket: &str) -> UnixStream {
        let path = self.folder.path().join(socket);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return stream;
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}: {}", self.said()),
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The host's end of the guest's port.
    pub(crate) fn port(&self) -> UnixStream {
        self.connect("kpi")
    }

    /// What the guest and its QEMU have said.
    pub(crate) fn said(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        format!("{log}\n{}", self.console())
    }

    pub(crate) fn console(&self) -> String {
        let text = std::fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the last line that the guest has printed is one that `wanted` takes.
    pub(crate) fn beat(&self, wanted: impl Fn(&Beat) -> bool) -> Beat {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.console();
            // The last line may not be whole.
            let lines = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(beat) = lines.filter_map(Beat::read).next_back().filter(&wanted) {
                return beat;
            }
            assert!(Instant::now() < deadline, "the guest did not come so far: {}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the machine in the middle of whatever it does.
    pub(crate) fn cut_power(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Writes the memory and devices of the guest to a file, and ends the machine.
    pub(crate) fn save(&mut self) {
        let mut control = Control::new(self.connect("control"));
        control.run("stop", json!({}));
        control.run("migrate", json!({ "uri": "exec:cat >state" }));
        control.wait("query-migrate", "completed");
        self.cut_power();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// QEMU's own protocol: a command, and its answer.
struct Control(BufReader<UnixStream>);

impl Control {
    fn new(stream: UnixStream) -> Self {
        let mut control = Self(BufReader::new(stream));
        assert!(control.line().get("QMP").is_some());
        control.run("qmp_capabilities", json!({}));
        control
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.parse().unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let said = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{said}").unwrap();
        loop {
            let mut line = self.line();
            assert!(line.get("error").is_none(), "{line}");
            // Between them come events.
            if let Some(answer) = line.get_mut("return") {
                return answer.take();
            }
        }
    }

    /// Asks until the status is `wanted`.
    fn wait(&mut self, query: &str, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.run(query, json!({}));
            if state["status"] == wanted {
                return;
            }
            assert!(state["status"] != "failed" && Instant::now() < deadline, "{state}");
            std::thread::sleep(LOOK);
        }
    }
}
