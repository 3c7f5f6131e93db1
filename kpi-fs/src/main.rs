//! `kpi-fs`: a folder whose files become rows.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use kpi_fs::listen::{Door, SocketFile};
use kpi_fs::mount::{self, Audience, Ending, Mount, Unmount};
use kpi_fs::outbox::{BATCH_ROWS, Outbox};
use kpi_fs::probe::{Probe, What};
use kpi_fs::store::{Limits, Store};
use kpi_fs::{export, seal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long the mount's end is waited for after it was unmounted; all that was stored is durable.
const ENDING: Duration = Duration::from_secs(3);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A folder whose files become rows of a database: an application writes its KPIs to plain files.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kpi-fs mount /kpi --database /var/lib/kpi.db &
  printf 'users,load\\n5,0.7\\n' > /kpi/unencrypted/web    a row of table web
  printf '6,0.9\\n'           >> /kpi/unencrypted/web     one more
  kpi-fs rows --database /var/lib/kpi.db
  kpi-fs probe --every 10s --into /kpi/unencrypted/load -- cut -d' ' -f1 /proc/loadavg
  echo 42 | kpi-fs seal --key primary.key > /kpi/encrypted/balance
  kpi-fs mount /kpi --database /var/lib/kpi.db --allow-other \\
      --port /dev/virtio-ports/sojourn.kpi     in a guest
  kpi-fs mount /kpi --database kpi.db --listen kpi.sock     on the host

A file of unencrypted/ is CSV: of several lines the first names the columns, each other is a row.
A file of encrypted/ is opaque: one row each time it is stored. A file is stored by close and fsync.";

#[derive(Subcommand)]
enum Command {
    /// Mount a folder, in the foreground, until it is unmounted or SIGTERM or SIGINT comes.
    Mount {
        /// The folder, which must be there.
        folder: PathBuf,
        /// The database, made if it is not there.
        #[arg(long, value_name = "FILE")]
        database: PathBuf,
        /// Bytes of all files together (as in 64M).
        #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
        quota: u64,
        /// Bytes of one file; those of encrypted/ have 4M at most.
        #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
        file: u64,
        /// Bytes of rows that are kept, the oldest go first.
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
        rows: u64,
        /// Let all users in, not only the one who runs this.
        #[arg(long)]
        allow_other: bool,
        /// Send rows through this virtio-serial port, and hear there which have arrived.
        #[arg(long, value_name = "DEVICE")]
        port: Option<PathBuf>,
        /// Send rows to whoever connects to this Unix socket, and hear there which have arrived.
        #[arg(long, value_name = "SOCKET", conflicts_with = "port")]
        listen: Option<PathBuf>,
    },
    /// Print rows as JSON lines.
    Rows {
        /// The database.
        #[arg(long, value_name = "FILE")]
        database: PathBuf,
        /// Only those after this number.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: i64,
    },
    /// Run a command or read a URL at an interval and write what it says to a file.
    #[command(after_help = "\
Examples:
  kpi-fs probe --every 10s --into /kpi/unencrypted/load -- cut -d' ' -f1 /proc/loadavg
  kpi-fs probe --every 1m --into /kpi/unencrypted/web --url http://127.0.0.1:8080/kpi.csv")]
    Probe {
        /// The interval (as in 500ms, 10s, 5m).
        #[arg(long, value_name = "TIME", value_parser = time)]
        every: Duration,
        /// The file, written anew each time.
        #[arg(long, value_name = "FILE")]
        into: PathBuf,
        /// A line put before what is read: names for the columns.
        #[arg(long, value_name = "LINE")]
        header: Option<String>,
        /// How often; without it, for ever.
        #[arg(long, value_name = "NUMBER")]
        times: Option<u64>,
        /// Read this (plain HTTP).
        #[arg(
            long,
            value_name = "URL",
            conflicts_with = "command",
            required_unless_present = "command"
        )]
        url: Option<String>,
        /// Run this and take what it prints.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Seal what comes in so that only one key's owner can read it.
    #[command(after_help = "\
Example:
  echo 42 | kpi-fs seal --key primary.key > /kpi/encrypted/balance")]
    Seal {
        /// The file with the public key: 64 hexadecimal digits.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(std::io::stderr().is_terminal())
        // The library below logs what it was not asked to do, and is told so by an errno.
        .with_env_filter("kpi_fs=info")
        .init();
    match run(Args::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount { folder, database, quota, file, rows, allow_other, port, listen } => {
            let audience = if allow_other { Audience::Everyone } else { Audience::Owner };
            let limits = Limits { quota, file, rows };
            let exit = match (port, listen) {
                (Some(port), _) => Exit::Port(port),
                (None, Some(socket)) => Exit::Socket(socket),
                (None, None) => Exit::None,
            };
            serve(&folder, &database, limits, audience, &exit)
        }
        Command::Rows { database, after } => print_rows(&database, after),
        Command::Probe { every, into, header, times, url, command } => {
            let what = match url {
                Some(url) => What::Url(url),
                None => What::Command(command),
            };
            Probe { what, every, into, header }.run(times);
            Ok(())
        }
        Command::Seal { key } => {
            let sealed = seal::seal(&seal::PublicKey::read(&key)?, std::io::stdin().lock())?;
            let mut out = std::io::stdout().lock();
            out.write_all(&sealed)?;
            Ok(out.flush()?)
        }
    }
}

/// Where rows leave.
enum Exit {
    /// They stay.
    None,
    /// A virtio-serial port.
    Port(PathBuf),
    /// A Unix socket to listen on.
    Socket(PathBuf),
}

impl Exit {
    /// Begins to send; answers what is to be removed at the end.
    fn open(&self, store: &Store, database: &Path) -> Result<Option<SocketFile>, Failure> {
        let outboxes = || Ok::<_, Failure>([Outbox::open(database)?, Outbox::open(database)?]);
        match self {
            Self::None => Ok(None),
            Self::Port(path) => {
                let port = File::options().read(true).write(true).open(path);
                let port =
                    port.map_err(|error| format!("{} cannot be used: {error}", path.display()))?;
                export::start(port.try_clone()?, port, outboxes()?, store.bell())?;
                Ok(None)
            }
            Self::Socket(path) => Ok(Some(Door::open(path)?.serve(outboxes()?, store.bell())?)),
        }
    }
}

fn serve(
    folder: &Path,
    database: &Path,
    limits: Limits,
    audience: Audience,
    exit: &Exit,
) -> Result<(), Failure> {
    // Before anything is open that a signal should close in order.
    let signals = Signals::new([SIGTERM, SIGINT])?;
    if mount::prepare(folder, database)? {
        tracing::warn!("took away the mount of a kpi-fs that had not ended in order");
    }
    let store = Store::open(database, limits)?;
    let socket = exit.open(&store, database)?;
    let served = run_mount(store, folder, database, audience, signals, socket.clone());
    remove(socket.as_ref());
    served
}

fn run_mount(
    store: Store,
    folder: &Path,
    database: &Path,
    audience: Audience,
    signals: Signals,
    socket: Option<SocketFile>,
) -> Result<(), Failure> {
    let mut mounted = Mount::new(store, folder, audience)?;
    say(&format!("{} is mounted, its rows are in {}", folder.display(), database.display()))?;
    let unmount = mounted.unmount();
    let obey = move || obey(signals, unmount, socket.as_ref());
    std::thread::Builder::new().name("signals".into()).spawn(obey)?;
    Ok(mounted.run()?)
}

fn remove(socket: Option<&SocketFile>) {
    if let Some(socket) = socket {
        socket.remove();
    }
}

/// Ends the mount at the first signal, and the program at the second if it has not ended.
fn obey(mut signals: Signals, mut unmount: Unmount, socket: Option<&SocketFile>) {
    let mut is_second = false;
    for signal in signals.forever() {
        if is_second {
            tracing::warn!("ends with files open, what was not stored is gone");
            remove(socket);
            std::process::exit(1);
        }
        match unmount.run() {
            Ok(Ending::Unmounted) => {
                // The session has ended, unless the mount was copied to another mount namespace,
                // as containers and sandboxes do with all that is mounted when they start.
                std::thread::sleep(ENDING);
                tracing::warn!("ends, though another mount namespace has the mount still");
                remove(socket);
                std::process::exit(0);
            }
            Ok(Ending::Detached) => {
                is_second = true;
                tracing::warn!("ends when the last file is closed, or at another signal");
            }
            Err(error) => tracing::warn!("signal {signal}: cannot unmount: {error}"),
        }
    }
}

fn print_rows(database: &Path, mut after: i64) -> Result<(), Failure> {
    if !database.exists() {
        return Err(format!("no database {}; kpi-fs mount makes one", database.display()).into());
    }
    let outbox = Outbox::open(database)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let rows = outbox.after(after, BATCH_ROWS)?;
        let Some(last) = rows.last() else { break };
        after = last.seq;
        for row in rows {
            serde_json::to_writer(&mut out, &row)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(out.flush()?)
}

fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// The digits that a text begins with, and what comes after them.
fn with_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Reads `64M`: bytes with K, M, G or T for powers of 1,024.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = with_unit(text);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{unit:?} is no unit; use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| "write it as in 64M".to_owned())?;
    number.checked_mul(1 << shift).filter(|size| *size <= 1 << 43).ok_or("too large".to_owned())
}

/// Reads `10s`.
fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = with_unit(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is no unit; use ms, s, m or h, as in 10s")),
    };
    let number: u64 = digits.parse().map_err(|_| "write it as in 10s".to_owned())?;
    let time = number.checked_mul(millis).filter(|millis| *millis > 0);
    time.map(Duration::from_millis).ok_or("an interval is above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent_and_units_are_read() {
        Args::command().debug_assert();
        assert_eq!(size("4096"), Ok(4_096));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert!(size("64MB").is_err() && size("").is_err() && size("9999999T").is_err());
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert!(time("10").is_err() && time("0s").is_err());
    }
}
