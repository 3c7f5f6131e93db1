//! What happens in one run, made from a seed: a list of deeds, so that a failing run can be cut
//! down to the few that matter.

use std::fmt;
use std::time::Duration;

use protocol::{Action, Config, Mode, Row};

use crate::world::When;

/// Sites have these names; the first is the VMs' primary.
pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Every site has these hosts, and others only know them by what they can do.
pub(super) const HOSTS: [&str; 2] = ["h1", "h2"];
/// Deeds of a run, at most.
const MAX_DEEDS: usize = 60;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// 64 bits.
    pub(super) fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.throw() % end as u64).expect("small numbers")
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// What a user asks for. VMs and operations are meant by their number in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Move a VM; to its own hosts only, booting it, in this mode, only to see the offers.
    Move { vm: usize, local: bool, boot: bool, mode: Mode, dry_run: bool },
    /// Force a VM out within so many seconds.
    Evict { vm: usize, within: u64 },
    /// Stop the latest operation but so many.
    Cancel(usize),
    /// Empty a host, or let it be used again.
    Drain(usize, bool),
    /// Add a host, or remove it.
    Host(usize, bool),
    /// Change or show a VM's run state.
    Control(usize, Action),
    /// Become the delegator of a peer that has a VM.
    Reclaim(usize, usize),
    /// Change what is monitored of a VM.
    Monitor(usize),
}

/// Something that is done to a federation. Sites, links and hosts are meant by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// A site's user asks for something.
    Ask(usize, Wish),
    /// A site ends when it next writes a row of this kind.
    CrashAt(usize, &'static str, When),
    /// A site's process ends.
    Crash(usize),
    /// A site's machine goes off, with its guests.
    PowerFailure(usize),
    /// Every site that is down is started.
    StartAll,
    /// Messages no longer get through a link: both ways, or only towards its second site.
    Cut { link: usize, one_way: bool },
    /// Messages get through a link again.
    Join(usize),
    /// Everything on a link takes so many milliseconds longer.
    Slow(usize, u64),
    /// No guest comes up on a host, or they do again.
    BreakHost { site: usize, host: usize, broken: bool },
    /// A site's clock is set: so many milliseconds off the true time.
    SetClock(usize, i64),
    /// There is no space for the journal, or there is again.
    FullJournal(usize, bool),
    /// There is no space for files, or there is again.
    FullFiles(usize, bool),
    /// The files that arrive next at a site are not what was sent.
    Damage(usize),
    /// A site's disk takes so many milliseconds for each commit.
    SlowDisk(usize, u64),
    /// A site is lost for good, with its guests and files.
    Gone(usize),
    /// A site's journal is put back from a copy that has this share of it, in hundredths.
    Restore(usize, usize),
    /// A site ends its peering at a link, its first end or its second, within so many seconds.
    Leave { link: usize, second: bool, within: u64 },
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it was made from.
    pub seed: u64,
    /// How many sites there are.
    pub(super) sites: usize,
    /// Which of them know each other.
    pub(super) links: Vec<(usize, usize)>,
    /// How many VMs there are.
    pub(super) vms: usize,
    /// The sites that pass the transfers of others through their own proxies.
    pub(super) relays: Vec<usize>,
    /// The site whose proxy nobody can dial, if there is one.
    pub(super) dials_out: Option<usize>,
    /// How many VMs each host has room for.
    pub(super) room: u32,
    /// How many of a hundred messages are lost, repeated or late.
    pub(super) odds: usize,
    /// What is done, and how much time passes then.
    pub(super) deeds: Vec<(Deed, Duration)>,
}

/// The kinds of rare runs in which journals are put back.
const RESTORING: std::ops::RangeInclusive<usize> = 1..=3;

/// The seeds before this one have neither relays, nor sites that nobody can dial, nor impatient
/// ones: planted bugs are looked for in them, and some show in few.
const DIRECT_SEEDS: u64 = 1_000;
/// And before this one no peering ends.
const LOYAL_SEEDS: u64 = 2_000;

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let sites = 2 + dice.below(4);
        let mut ways = Dice(!seed);
        let is_direct = seed < DIRECT_SEEDS;
        let relays = match ways.below(2) {
            1 if !is_direct => (0..sites).filter(|_| ways.below(2) == 0).collect(),
            _ => vec![],
        };
        let dials_out = (!is_direct && ways.below(3) == 0).then(|| ways.below(sites));
        let mut plan = Self {
            seed,
            sites,
            links: links(&mut dice, sites),
            vms: 1 + dice.below(4),
            relays,
            dials_out,
            room: dice.one_of(&[1, 2, 4]),
            odds: dice.one_of(&[0, 0, 2, 10]),
            deeds: vec![],
        };
        // Most runs have all common faults; what only an operator can mend comes in a few.
        let rare = dice.below(16);
        for _ in 0..10 + dice.below(MAX_DEEDS - 10) {
            let deed = deed(&mut dice, &plan, rare);
            let span = dice.one_of(&[0, 3, 60, 400, 5_000, 100_000, 4_000_000]);
            let span = Duration::from_millis(dice.throw() % (span + 1));
            plan.deeds.push((deed, span));
        }
        plan.deeds.extend(at_once(&mut dice, plan.sites, plan.vms));
        if RESTORING.contains(&rare) && !plan.loses_a_site() {
            plan.deeds.extend(put_back(&mut dice, plan.sites, plan.vms));
        }
        if seed >= LOYAL_SEEDS && ways.below(3) == 0 {
            let leave = Deed::Leave {
                link: ways.below(plan.links.len()),
                second: ways.below(2) == 0,
                within: ways.one_of(&[30, 600, 7200]),
            };
            let moment = Duration::from_millis(ways.throw() % 5_000);
            plan.deeds.insert(ways.below(plan.deeds.len()), (leave, moment));
        }
        if ways.below(4) == 0 && !plan.loses_a_site() {
            plan.deeds.extend(given_back(&mut ways, plan.sites, plan.vms));
        }
        if plan.is_impatient() && ways.below(2) == 0 && !plan.loses_a_site() {
            // First of all: what goes wrong later keeps most VMs from moving.
            plan.deeds.splice(..0, parted(&mut ways, plan.links.len(), plan.vms));
        }
        plan
    }

    /// How many deeds it has.
    pub fn deeds(&self) -> usize {
        self.deeds.len()
    }

    /// How long its sites wait for each other: in every third run so short that what is ready is
    /// given up before whoever was to come for it is back.
    pub(super) fn config(&self) -> Config {
        const MINUTE: Duration = Duration::from_secs(60);
        let patient = Config::default();
        match self.is_impatient() {
            true => Config { admit_life: MINUTE, ready_life: MINUTE / 2, ..patient },
            false => patient,
        }
    }

    fn is_impatient(&self) -> bool {
        self.seed >= DIRECT_SEEDS && self.seed.is_multiple_of(3)
    }

    /// Whether a site is lost for good in it.
    pub(super) fn loses_a_site(&self) -> bool {
        self.deeds.iter().any(|(deed, _)| matches!(deed, Deed::Gone(_)))
    }

    /// Whether a VM is reclaimed past sites that may well be there.
    pub(super) fn reclaims(&self) -> bool {
        self.deeds.iter().any(|(deed, _)| matches!(deed, Deed::Ask(_, Wish::Reclaim(..))))
    }

    /// Whether a journal is put back in it.
    pub(super) fn restores(&self) -> bool {
        self.deeds.iter().any(|(deed, _)| matches!(deed, Deed::Restore(..)))
    }
}

/// VMs are moved while they are being started, by two sites at once, and what is monitored of them
/// is changed while they are moved, which by chance alone seldom happens.
fn at_once(dice: &mut Dice, sites: usize, vms: usize) -> Vec<(Deed, Duration)> {
    const STOPPED: Duration = Duration::from_secs(30);
    let mut deeds = vec![];
    for vm in 0..vms {
        let a_moment = Duration::from_millis(dice.throw() % 120);
        let wish = Wish::Move {
            vm,
            local: dice.once_in(2),
            boot: dice.once_in(2),
            mode: dice.one_of(&[Mode::Hibernate, Mode::Restart]),
            dry_run: false,
        };
        deeds.push((Deed::Ask(0, Wish::Control(vm, Action::Stop)), STOPPED));
        deeds.push((Deed::Ask(0, Wish::Control(vm, Action::Start)), a_moment));
        deeds.push((Deed::Ask(0, wish), a_moment));
        if dice.once_in(2) {
            deeds.push((Deed::Ask(dice.below(sites), wish), a_moment));
        }
        deeds.push((Deed::Ask(0, Wish::Monitor(vm)), STOPPED));
    }
    deeds
}

/// VMs go away and come home, and then the journal of a site that had some is put back, from when
/// they were there: all others are there, and remember more.
fn put_back(dice: &mut Dice, sites: usize, vms: usize) -> Vec<(Deed, Duration)> {
    const CALM: Duration = Duration::from_secs(120);
    let mode = Mode::Hibernate;
    let go = |vm, local| {
        (Deed::Ask(0, Wish::Move { vm, local, boot: true, mode, dry_run: false }), CALM)
    };
    let mut deeds = vec![(Deed::StartAll, CALM)];
    deeds.extend((0..vms).map(|vm| go(vm, false)));
    deeds.extend((0..vms).map(|vm| go(vm, true)));
    deeds.push((Deed::Restore(dice.below(sites), 50 + dice.below(50)), CALM));
    deeds.push((Deed::StartAll, CALM));
    deeds
}

/// VMs go to sites where no guest comes up, so that they are given back, and the power fails there
/// about when they are.
fn given_back(dice: &mut Dice, sites: usize, vms: usize) -> Vec<(Deed, Duration)> {
    const CALM: Duration = Duration::from_secs(120);
    let mode = Mode::Hibernate;
    let go = |vm, local| Deed::Ask(0, Wish::Move { vm, local, boot: true, mode, dry_run: false });
    let hosts = |broken| {
        let all = (1..sites).flat_map(|site| (0..HOSTS.len()).map(move |host| (site, host)));
        all.map(move |(site, host)| (Deed::BreakHost { site, host, broken }, Duration::ZERO))
    };
    let mut deeds = vec![(Deed::StartAll, CALM)];
    deeds.extend((0..vms).map(|vm| (go(vm, true), CALM)));
    deeds.extend(hosts(true));
    for vm in 0..vms {
        let a_moment = Duration::from_millis(dice.throw() % 400);
        deeds.push((go(vm, false), a_moment));
        deeds.extend((1..sites).map(|site| (Deed::PowerFailure(site), Duration::ZERO)));
        deeds.push((Deed::StartAll, CALM));
    }
    deeds.extend(hosts(false));
    deeds
}

/// VMs move over slow links, and all sites lose each other about when a Destination has everything
/// and nobody has told it so, for longer than impatient ones wait.
fn parted(dice: &mut Dice, links: usize, vms: usize) -> Vec<(Deed, Duration)> {
    const CALM: Duration = Duration::from_secs(120);
    // A transfer takes about ten seconds by it, and a word half of one.
    const LATENCY_MS: u64 = 500;
    let all = |deed: fn(usize) -> Deed| (0..links).map(move |link| (deed(link), Duration::ZERO));
    let at_home = |drain| {
        let hosts = 0..HOSTS.len();
        hosts.map(move |host| (Deed::Ask(0, Wish::Drain(host, drain)), Duration::ZERO))
    };
    let mut deeds: Vec<_> = at_home(true).collect();
    for vm in 0..vms {
        let mode = Mode::Hibernate;
        let go = Deed::Ask(0, Wish::Move { vm, local: false, boot: true, mode, dry_run: false });
        if dice.once_in(2) {
            // The Source may have released it, and told nobody.
            deeds.push((Deed::CrashAt(0, "released", When::After), Duration::ZERO));
        }
        deeds.extend(all(|link| Deed::Slow(link, LATENCY_MS)));
        deeds.push((go, Duration::from_millis(11_000 + dice.throw() % 6_000)));
        deeds.extend(all(|link| Deed::Cut { link, one_way: false }));
        deeds.push((Deed::StartAll, CALM));
        deeds.extend(all(Deed::Join));
        deeds.extend(all(|link| Deed::Slow(link, 0)));
        deeds.push((Deed::StartAll, CALM));
    }
    deeds.extend(at_home(false));
    deeds
}

/// A chain, a ring, a star, or all with all.
fn links(dice: &mut Dice, sites: usize) -> Vec<(usize, usize)> {
    let chain = (1..sites).map(|to| (to - 1, to));
    match dice.below(5) {
        0 | 1 => chain.collect(),
        2 if sites > 2 => chain.chain([(sites - 1, usize::from(dice.once_in(2)))]).collect(),
        3 => (1..sites).map(|to| (0, to)).collect(),
        _ => (0..sites).flat_map(|one| (one + 1..sites).map(move |to| (one, to))).collect(),
    }
}

fn deed(dice: &mut Dice, plan: &Plan, rare: usize) -> Deed {
    let site = dice.below(plan.sites);
    let link = dice.below(plan.links.len());
    match dice.below(40) {
        0..=17 => Deed::Ask(site, wish(dice, plan, rare)),
        18..=23 => {
            let kind = dice.one_of(&Row::KINDS);
            let during = When::During(dice.below(4_000));
            Deed::CrashAt(site, kind, dice.one_of(&[When::Before, during, When::After]))
        }
        24 => Deed::Crash(site),
        25 => Deed::PowerFailure(site),
        26 | 27 => Deed::Cut { link, one_way: dice.once_in(2) },
        28 => Deed::Join(link),
        29 => Deed::Slow(link, dice.one_of(&[0, 200, 2_000])),
        30 => {
            let (host, broken) = (dice.below(HOSTS.len()), dice.once_in(2));
            Deed::BreakHost { site, host, broken }
        }
        31 => {
            let minute = 60_000;
            Deed::SetClock(site, dice.one_of(&[0, minute, -minute, 600 * minute, -600 * minute]))
        }
        32 => Deed::FullJournal(site, dice.once_in(2)),
        33 => Deed::FullFiles(site, dice.once_in(2)),
        34 => Deed::SlowDisk(site, dice.one_of(&[0, 30, 400])),
        35 if rare == 0 && !plan.loses_a_site() && !plan.restores() && plan.sites > 2 => {
            Deed::Gone(1 + dice.below(plan.sites - 1))
        }
        // Tried often, as it only counts where a peer that is there remembers more.
        35 | 37 | 38 if RESTORING.contains(&rare) => Deed::Restore(site, dice.below(100)),
        36 => Deed::Damage(site),
        _ => Deed::StartAll,
    }
}

fn wish(dice: &mut Dice, plan: &Plan, rare: usize) -> Wish {
    let vm = dice.below(plan.vms);
    match dice.below(24) {
        0..=11 => Wish::Move {
            vm,
            local: dice.once_in(3),
            boot: dice.once_in(2),
            mode: dice.one_of(&[Mode::Hibernate, Mode::Hibernate, Mode::Restart]),
            dry_run: dice.once_in(8),
        },
        12..=15 => Wish::Evict { vm, within: dice.one_of(&[30, 600, 7200]) },
        16 | 17 => Wish::Cancel(dice.below(4)),
        18 => Wish::Drain(dice.below(HOSTS.len()), dice.once_in(2)),
        19 if rare == 4 => Wish::Reclaim(vm, dice.below(plan.sites)),
        20 if rare > 4 => Wish::Host(dice.below(HOSTS.len()), dice.once_in(2)),
        21 => Wish::Monitor(vm),
        _ => {
            let actions = [
                Action::Start,
                Action::Start,
                Action::Stop,
                Action::Pause,
                Action::Resume,
                Action::Hibernate,
                Action::Show,
            ];
            let destroy = dice.once_in(60);
            let action = dice.one_of(&actions);
            Wish::Control(vm, if destroy { Action::Destroy } else { action })
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links: Vec<String> =
            self.links.iter().map(|(one, to)| format!("{}-{}", NAMES[*one], NAMES[*to])).collect();
        writeln!(
            f,
            "{} sites ({}), {} VMs, room for {} on a host, {} % of messages in trouble",
            self.sites,
            links.join(" "),
            self.vms,
            self.room,
            self.odds
        )?;
        for (deed, span) in &self.deeds {
            writeln!(f, "  {deed:?}, then {span:?}")?;
        }
        Ok(())
    }
}
