//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use model::{Bytes, ProxyUri, SiteKey};
use policies::Decision;

/// A cloud site's part in a federation: place VMs at other sites, host theirs, and know at every
/// moment where the responsibility for each lies.
#[derive(Debug, Parser)]
#[command(name = "sojourn", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Args {
    /// The site's state folder.
    #[arg(long, global = true, env = "SOJOURN_SITE", default_value = "/var/lib/sojourn")]
    pub(crate) site: PathBuf,
    /// How data is printed on standard output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Print no progress on standard error.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: documented and stable; a stream has one object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Make a site, run its node, show it.
    #[command(subcommand)]
    Site(Site),
    /// The sites that this one trusts directly.
    #[command(subcommand)]
    Peer(Peer),
    /// The machines of this site that run VMs.
    #[command(subcommand)]
    Host(Host),
    /// VMs, wherever they are.
    #[command(subcommand)]
    Vm(Vm),
    /// Long actions, which go on without their client.
    #[command(subcommand)]
    Op(Op),
    /// Offers that this site has out.
    #[command(subcommand)]
    Offer(Offer),
    /// What was agreed with neighbours about VMs, signed by both.
    #[command(subcommand)]
    Contract(Contract),
    /// What VMs have used.
    #[command(subcommand)]
    Usage(Usage),
    /// The site's own rules.
    #[command(subcommand)]
    Policy(Policy),
    /// Transfer proxies in processes of their own, on other machines of the site.
    #[command(subcommand, long_about = PROXY_ABOUT)]
    Proxy(Proxy),
    /// Look at this machine and say what would be in the way.
    Doctor,
    /// Print completions for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Site {
    /// Make a new site: identity, configuration, state folder.
    Init {
        /// The state folder; the same as --site.
        folder: Option<PathBuf>,
        /// What the site calls itself towards its peers.
        #[arg(long)]
        name: String,
        /// Where its node listens: TCP for peers, UDP and TCP for transfers.
        #[arg(long, default_value = "0.0.0.0:7420")]
        listen: SocketAddr,
        /// How peers reach it, if not at that address: HOST:PORT.
        #[arg(long)]
        advertise: Option<String>,
        /// Simulate the guests, to try out or to test: no real guest ever runs there.
        #[arg(long)]
        simulated: bool,
    },
    /// Run the site's node, until SIGINT or SIGTERM. Guests outlive it.
    Run {
        /// The state folder; the same as --site.
        folder: Option<PathBuf>,
    },
    /// Give the site a new identity key; its peers follow by themselves, whenever they next speak to
    /// it. The node must not run meanwhile; guests do. The old key is destroyed.
    RotateKey,
    /// Show the site.
    Show {
        /// Every setting that is in force, and whence.
        #[arg(long)]
        config: bool,
    },
    /// Let VMs run that are held because the journal is older than a peer remembers.
    Unfence {
        /// This one; without, all that the journal knows to be here.
        vm: Option<String>,
        /// You know that they run nowhere else.
        #[arg(long)]
        yes: bool,
    },
    /// Force every VM of others out of this site.
    Evacuate {
        /// Why, for those who must find other places.
        #[arg(long)]
        reason: String,
        /// After how long a VM without another place is parked: 90s, 10m, 2h.
        #[arg(long, value_parser = seconds, default_value = "10m")]
        deadline: u64,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// Make a ticket that lets one other site join, once.
    Invite {
        /// For how long it is good: 90s, 10m, 2h.
        #[arg(long, value_parser = seconds, default_value = "1h")]
        valid: u64,
        #[command(flatten)]
        terms: Terms,
    },
    /// Join the site that made a ticket; each then trusts the other.
    Join {
        /// The ticket.
        ticket: String,
        /// What to call that site here; else what it calls itself.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// List the peers.
    List,
    /// Show one peer.
    Show {
        /// Its name.
        peer: String,
    },
    /// Change what a peer may do here; what is not named stays as it is.
    Set {
        /// Its name.
        peer: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// Trust a peer no more. What it shares with this site moves away first: its VMs leave this
    /// site, and this site's VMs leave it; until then it stays a peer, and nothing new begins.
    Remove {
        /// Its name.
        peer: String,
        /// After which VMs that run here for it are parked: 90s, 10m, 2h.
        #[arg(long, value_parser = seconds, default_value = "10m")]
        deadline: u64,
        /// Keep it after all.
        #[arg(long)]
        undo: bool,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
}

/// What a peer may do here.
#[derive(Debug, clap::Args)]
pub(crate) struct Terms {
    /// What it may do, separated by commas: place (VMs here), host (VMs of this site),
    /// intermediate (between this site and others); or nothing. Without a word, all of it.
    #[arg(long, value_name = "RIGHTS")]
    pub(crate) may: Option<String>,
    /// Most VMs that run here for it; any lifts the limit, here and below.
    #[arg(long, value_name = "N", value_parser = cap::<u32>)]
    pub(crate) vms: Option<Cap<u32>>,
    /// Most processors of these.
    #[arg(long, value_name = "N", value_parser = cap::<u32>)]
    pub(crate) cpus: Option<Cap<u32>>,
    /// Most memory of these, such as 64G.
    #[arg(long, value_name = "SIZE", value_parser = cap::<Bytes>)]
    pub(crate) memory: Option<Cap<Bytes>>,
    /// Most disk of these.
    #[arg(long, value_name = "SIZE", value_parser = cap::<Bytes>)]
    pub(crate) disk: Option<Cap<Bytes>>,
    /// Most requests a second.
    #[arg(long, value_name = "N", value_parser = cap::<u32>)]
    pub(crate) requests: Option<Cap<u32>>,
    /// Most bytes a second of all transfers with it, in each direction, such as 100M.
    #[arg(long, value_name = "SIZE", value_parser = cap::<Bytes>)]
    pub(crate) rate: Option<Cap<Bytes>>,
    /// The agreement on paper that stands behind the peering; none takes it away.
    #[arg(long, value_name = "WORD")]
    pub(crate) contract: Option<String>,
    /// A word for policies to know it by, such as partner. Repeatable.
    #[arg(long, value_name = "WORD")]
    pub(crate) mark: Vec<String>,
    /// A word to take away. Repeatable.
    #[arg(long, value_name = "WORD")]
    pub(crate) unmark: Vec<String>,
}

/// A limit as it is typed: a value, or `any`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cap<T>(pub(crate) Option<T>);

fn cap<T>(text: &str) -> Result<Cap<T>, String>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    match text {
        "any" => Ok(Cap(None)),
        text => {
            text.parse().map(|at| Cap(Some(at))).map_err(|error: T::Err| format!("{error}, or any"))
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// List the hosts.
    List,
    /// Add a host, or change what it has for VMs.
    Add {
        /// Its name; told to nobody outside.
        host: String,
        /// Processors for VMs.
        #[arg(long)]
        cpus: u32,
        /// Memory for VMs, such as 8G.
        #[arg(long)]
        memory: Bytes,
    },
    /// Place no VM on a host any more, and move those that are there.
    Drain {
        /// Its name.
        host: String,
        /// Take VMs again.
        #[arg(long)]
        undo: bool,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
    /// Forget a host that has no VM.
    Remove {
        /// Its name.
        host: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Check a package and take its VM into this site's library, as its primary.
    Import {
        /// An .ova or .ovf file.
        file: PathBuf,
        /// What to call the VM; else what the package calls it.
        #[arg(long)]
        name: Option<String>,
    },
    /// Write a stopped VM that is at this site as an .ova file.
    Export {
        /// Name or id.
        vm: String,
        /// The file to write.
        file: PathBuf,
    },
    /// Find offers, choose, move the VM there and start it.
    Place(Move),
    /// Move the VM to another place, with this site as Controller; a running guest keeps running.
    Migrate(Move),
    /// Force the VM out of this site.
    Evict {
        /// Name or id.
        vm: String,
        /// Why, for whoever must find another place.
        #[arg(long)]
        reason: String,
        /// After how long it is parked if there is none: 90s, 10m, 2h.
        #[arg(long, value_parser = seconds, default_value = "10m")]
        deadline: u64,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
    /// List the VMs that this site has a part in.
    List,
    /// Show one VM: its state, this site's roles, and who has the next move.
    Show {
        /// Name or id.
        vm: String,
        /// Instead: what is monitored of it, as `set` takes it.
        #[arg(long)]
        monitoring: bool,
    },
    /// Change what is monitored of it, wherever it is; at the site that it was imported at.
    Set {
        /// Name or id.
        vm: String,
        /// A file with a MonitoringSection, or an OVF descriptor that has one; - for stdin.
        #[arg(long, value_name = "FILE")]
        monitoring: PathBuf,
    },
    /// What happened to a VM, as seen here.
    Events {
        /// Name or id.
        vm: String,
    },
    /// Start it where it is.
    Start {
        /// Name or id.
        vm: String,
    },
    /// Ask its guest to power off, and end it by force if it does not.
    Stop {
        /// Name or id.
        vm: String,
    },
    /// Hold it in memory.
    Pause {
        /// Name or id.
        vm: String,
    },
    /// Go on from a pause.
    Resume {
        /// Name or id.
        vm: String,
    },
    /// Save its run state to a file and end its process.
    Hibernate {
        /// Name or id.
        vm: String,
    },
    /// Delete it for good, with its files.
    Destroy {
        /// Name or id.
        vm: String,
        /// Really.
        #[arg(long)]
        yes: bool,
    },
    /// Take it over from a site that is lost for good, from the copy that was kept here.
    Adopt {
        /// Name or id.
        vm: String,
        /// How the other side is known to be fenced, and by whom. Kept for ever.
        #[arg(long)]
        statement: String,
    },
    /// Become the delegator of the peer that has it, past an Intermediary that is gone.
    Reclaim {
        /// Name or id.
        vm: String,
        /// The peer that has it, or answers for it.
        #[arg(long)]
        at: String,
    },
    /// Show what is measured of it, as far as it has come to this site.
    #[command(after_help = KPI_EXAMPLES)]
    Kpi(Kpi),
    /// Print its console, where it runs.
    Console {
        /// Name or id.
        vm: String,
        /// Go on as it goes on.
        #[arg(short, long)]
        follow: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// Name or id.
    pub(crate) vm: String,
    /// Ask only this peer; may be given several times.
    #[arg(long = "peer")]
    pub(crate) peers: Vec<String>,
    /// Ask no peer: only this site's own hosts.
    #[arg(long, conflicts_with = "peers")]
    pub(crate) local_only: bool,
    /// Show the offers in the order in which they would be tried, and withdraw them.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Shut the guest down and boot it there, instead of moving its memory.
    #[arg(long)]
    pub(crate) restart: bool,
    /// Do not wait for the end.
    #[arg(long)]
    pub(crate) detach: bool,
}

const KPI_EXAMPLES: &str = "\
Examples:
  sojourn vm kpi web                                    the newest value of each measure
  sojourn vm kpi web --follow                           and each that comes
  sojourn vm kpi web --plot web.current_users --follow
  sojourn vm kpi web --sql 'SELECT max(current_users) FROM web'

A query sees the table measures (seq, at_ms, received_ms, measure, format, of, value), and one for \
each file that the application writes, with its raw values, such as web (at_ms, current_users).";

#[derive(Debug, clap::Args)]
pub(crate) struct Kpi {
    /// Name or id.
    pub(crate) vm: String,
    /// Go on with what comes.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this measure, such as cpu_share or web.current_users; may be given several times.
    #[arg(long = "measure", value_name = "MEASURE")]
    pub(crate) measures: Vec<String>,
    /// So many values of each measure at first.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) last: u32,
    /// Draw a measure's values over time.
    #[arg(long, value_name = "MEASURE", conflicts_with_all = ["sql", "measures", "last"])]
    pub(crate) plot: Option<String>,
    /// Ask in SQL.
    #[arg(long, value_name = "QUERY", conflicts_with_all = ["follow", "measures", "last"])]
    pub(crate) sql: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Op {
    /// List operations.
    List,
    /// Show one, with what happened.
    Show {
        /// Its id.
        id: String,
    },
    /// Wait until it ends.
    Wait {
        /// Its id.
        id: String,
        /// Give up waiting after this long: 90s, 10m, 2h. The operation goes on.
        #[arg(long, value_parser = seconds)]
        timeout: Option<u64>,
    },
    /// Stop it, as long as nothing is handed over.
    Cancel {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Contract {
    /// List them, ended ones too.
    List,
    /// Show one; with -o json also what was signed, and both signatures (base64).
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Limits of service that were broken; with -o json also the signed evidence (base64).
    Violations {
        /// Only of this VM, by name or id.
        #[arg(long)]
        vm: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Offer {
    /// List them.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Usage {
    /// Print what VMs have used, as stated and signed by the sites that ran them.
    #[command(long_about = EXPORT_ABOUT)]
    Export(Export),
    /// Check an export by stay in JSON against its signatures and certificates; needs no node.
    Verify {
        /// The file.
        file: PathBuf,
    },
}

const EXPORT_ABOUT: &str = "\
Print what VMs have used, as stated and signed by the sites that ran them.

Columns: for whom (the peer above, or own), through whom (the peer below, or here), since, until, \
state, cpu_seconds (of all processors together), memory_gib_hours (memory that the VM had, times \
the time for which its guest existed), disk_read_bytes, disk_written_bytes, \
network_received_bytes, network_sent_bytes (empty where nobody counts, which is not zero). JSON \
has times as *_unix_ms, null for own and here, and by stay the signed statements.

States: final; open, it goes on; at_least, it is over, and its last statement has not come.

A period begins and ends at full hours (UTC). The first statement of an hour, made in its first \
minute, counts as made at the full hour; what was stated late counts in the hour in which it was \
stated, so that periods add up.";

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// Only this VM: name or id.
    #[arg(long)]
    pub(crate) vm: Option<String>,
    /// What a line is.
    #[arg(long, value_enum, default_value_t = UsageBy::Vm)]
    pub(crate) by: UsageBy,
    /// From this full hour on: 2026-11-01 or 2026-11-01T13:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<u64>,
    /// Up to this full hour: 2026-12-01 or 2026-12-01T13:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<u64>,
    /// CSV unless `-o json` says otherwise.
    #[arg(long, value_enum)]
    pub(crate) format: Option<UsageFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageBy {
    /// A VM in an epoch, as long as one site owned it.
    Stay,
    /// A VM.
    Vm,
    /// For whom and through whom.
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageFormat {
    /// A heading and a record a line.
    Csv,
    /// An array of objects.
    Json,
}

/// How the parts of `proxy` play together.
const PROXY_ABOUT: &str = "\
Transfer proxies in processes of their own, on other machines of the site.

A transfer proxy moves the files of VMs to and from the proxies of other sites. Each node has one \
in its own process, and needs no other as long as its machine reaches all files and its link is \
fast enough. A proxy of its own runs on the machine that has a host's files, as the same user as \
the node, and must see the files under the same absolute paths.

  1. on the node's machine, for its key:    sojourn site show -o json
  2. on the proxy's machine:                sojourn proxy init FOLDER --listen ... --node KEY
     which prints the lines for the node's sojourn.toml
  3. on the proxy's machine:                sojourn proxy run FOLDER
  4. add the lines, and the proxy's hosts, and restart the node

The proxy obeys this one node, and the node takes no other for it. It stores nothing but its key \
and its configuration: it may be stopped at any time, and what it was moving goes on after its \
next start. While it is away, new transfers of its hosts fail.";

#[derive(Debug, Subcommand)]
pub(crate) enum Proxy {
    /// Make a new proxy: its key and its configuration; prints what its node must know.
    Init {
        /// The folder to make.
        #[arg(env = "SOJOURN_PROXY", default_value = PROXY_FOLDER)]
        folder: PathBuf,
        /// Where proxies of other sites come in, UDP and TCP.
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// What they dial, if it is another: ADDRESS:PORT, with tls:// or quic:// before it where
        /// only TCP or only UDP is open, or dial-out where nothing comes in.
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = ProxyUri::configured)]
        advertise: Option<ProxyUri>,
        /// Where the node comes in, TCP: an address within the site.
        #[arg(long, value_name = "ADDRESS:PORT")]
        control: SocketAddr,
        /// The key of the node's site, 64 hex digits: the only one that is obeyed.
        #[arg(long, value_name = "KEY")]
        node: SiteKey,
    },
    /// Run the proxy, until SIGINT or SIGTERM.
    Run {
        /// Its folder.
        #[arg(env = "SOJOURN_PROXY", default_value = PROXY_FOLDER)]
        folder: PathBuf,
    },
}

/// Where a proxy lives, unless told otherwise.
const PROXY_FOLDER: &str = "/var/lib/sojourn-proxy";

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Check the site's policy files, and say everything that is wrong with them. A node that runs
    /// takes changed files up on SIGHUP, whole or not at all.
    Check,
    /// Show what the site decides for one input, why, and by which file.
    Explain {
        /// admit, delegate, expose, rank, transfer, share or trigger.
        decision: Decision,
        /// The input, JSON; - for standard input. Without it, an example to begin with is printed.
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Run the tests in the site's policy folder, and those of the defaults that it uses.
    Test,
}

/// A span of time in seconds, from a number with s, m or h.
fn seconds(text: &str) -> Result<u64, String> {
    let error = || format!("a time is a whole number with s, m or h, such as 10m, got {text:?}");
    let (number, factor) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    number.checked_mul(factor).filter(|seconds| *seconds > 0).ok_or_else(error)
}

/// A point in time in milliseconds, from a date (UTC) or a time with its offset.
fn moment(text: &str) -> Result<u64, String> {
    let date = || {
        // Its own parser passes over a time that follows.
        let date = jiff::civil::Date::strptime("%Y-%m-%d", text).ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    // A date is no timestamp, and so cannot be taken for one.
    let at = text.parse::<jiff::Timestamp>().ok().or_else(date);
    at.and_then(|at| u64::try_from(at.as_millisecond()).ok()).ok_or_else(|| {
        format!("a time is a date or a time with its zone, such as 2026-11-01T13:00Z, got {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn moments_are_dates_or_times_with_their_zone() {
        assert_eq!(moment("2026-11-01"), Ok(1_793_491_200_000));
        assert_eq!(moment("2026-11-01T13:00Z"), Ok(1_793_491_200_000 + 13 * 3_600_000));
        assert_eq!(moment("2026-11-01T13:00+01:00"), moment("2026-11-01T12:00:00Z"));
        for bad in ["", "13:00", "2026-11-01T13:00", "tomorrow", "1960-01-01"] {
            assert!(moment(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("90"), Ok(90));
        for bad in ["", "m", "-1s", "1d", "0s"] {
            assert!(seconds(bad).is_err(), "{bad:?} was taken");
        }
    }
}
