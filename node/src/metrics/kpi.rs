//! The newest values of measures that the operator chose, of each VM that this site is the primary
//! of.
//!
//! They are read from the monitoring database when somebody asks, and only those that came since
//! the last time: a VM without news costs nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use model::monitoring::{Format, Measure};
use model::{Descriptor, Epoch, SecretKey, Time, VmId};
use monitoring::query::Seen;
use monitoring::seal::OpeningKey;
use prometheus_client::registry::Unit;
use tokio::sync::broadcast;

use super::snapshot::Writer;
use crate::config::MetricsConfig;
use crate::driver::{Driver, Ended};
use crate::link::now;
use crate::monitor::{Asked, Monitor, opening_key};

/// How long values are read for one answer; what is not reached by then comes with a later one.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// A VM with measures that the operator chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    name: String,
    vm: VmId,
    series: BTreeSet<Series>,
}

/// A measure, and what is told of it: one may be told in several ways.
type Series = (Measure, &'static str);

impl Candidate {
    /// What of a VM's measures is among `wanted`; none if nothing is.
    pub(super) fn of(vm: VmId, descriptor: &Descriptor, wanted: &[Measure]) -> Option<Self> {
        let specifiers = descriptor.monitoring.specifiers.iter();
        let series: BTreeSet<Series> = specifiers
            .filter(|specifier| wanted.contains(&specifier.measure))
            .map(|specifier| (specifier.measure.clone(), format(specifier.format)))
            .collect();
        let name = descriptor.name.to_string();
        (!series.is_empty()).then_some(Self { name, vm, series })
    }
}

fn format(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Min => "min",
        Format::Max => "max",
        Format::Mean => "mean",
        Format::Median => "median",
    }
}

/// What is kept between two answers.
pub(super) struct Kpis {
    measures: Vec<Measure>,
    max_series: usize,
    news: broadcast::Receiver<VmId>,
    vms: HashMap<VmId, Known>,
    /// Those of them that have news.
    unread: HashSet<VmId>,
    skipped: u64,
    /// That there are too many was said in the log.
    is_said: bool,
}

/// What is known of one VM.
struct Known {
    key: OpeningKey,
    /// The last block that was read; none if the newest ones are to be looked through.
    block: Option<i64>,
    newest: HashMap<Series, Newest>,
    /// Values that are no numbers, and not counted yet.
    skipped: u64,
}

#[derive(Clone, Copy)]
struct Newest {
    place: (Epoch, u64),
    at: Time,
    value: f64,
}

/// What is shown.
#[derive(Debug)]
pub(super) struct View {
    samples: Vec<Sample>,
    dropped: usize,
    skipped: u64,
}

#[derive(Debug)]
struct Sample {
    vm: String,
    measure: String,
    format: &'static str,
    value: f64,
    age: Duration,
}

impl Kpis {
    pub(super) fn new(config: &MetricsConfig, monitor: &Monitor) -> Self {
        Self {
            measures: config.kpis.clone(),
            max_series: config.max_series,
            news: monitor.news(),
            vms: HashMap::new(),
            unread: HashSet::new(),
            skipped: 0,
            is_said: false,
        }
    }

    /// The measures that the operator chose.
    pub(super) fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// Reads what came since the last time.
    pub(super) async fn look(
        &mut self,
        candidates: Vec<Candidate>,
        driver: &Driver,
        monitor: &Monitor,
    ) -> Result<View, Ended> {
        let until = Instant::now() + READ_LIMIT;
        let (shown, dropped) = choose(candidates, self.max_series);
        if dropped > 0 && !self.is_said {
            self.is_said = true;
            let max_series = self.max_series;
            tracing::warn!(dropped, max_series, "more KPIs than metrics.max_series are not shown");
        }
        let vms: HashSet<VmId> = shown.iter().map(|candidate| candidate.vm).collect();
        self.vms.retain(|vm, _| vms.contains(vm));
        self.unread.retain(|vm| vms.contains(vm));
        self.hear_news();
        self.open(&vms, driver).await?;
        for vm in vms {
            // One that has left since the site was looked at is not there.
            let Some(known) = self.vms.get_mut(&vm) else { continue };
            if known.block.is_some() && !self.unread.contains(&vm) {
                continue;
            }
            let is_all = known.read(vm, &self.measures, monitor, until).await;
            self.skipped += std::mem::take(&mut known.skipped);
            if is_all {
                self.unread.remove(&vm);
            }
        }
        Ok(self.view(shown, dropped))
    }

    /// Takes down which VMs have news; all of them if some were missed.
    fn hear_news(&mut self) {
        loop {
            match self.news.try_recv() {
                Ok(vm) if self.vms.contains_key(&vm) => _ = self.unread.insert(vm),
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => {
                    self.unread.extend(self.vms.keys());
                }
                Err(_) => return,
            }
        }
    }

    /// Takes up VMs that were not shown so far.
    async fn open(&mut self, vms: &HashSet<VmId>, driver: &Driver) -> Result<(), Ended> {
        let new = vms.iter().filter(|vm| !self.vms.contains_key(vm)).copied();
        let new: Vec<VmId> = new.collect();
        if new.is_empty() {
            return Ok(());
        }
        let keys = driver.visit(move |core| {
            let key = |vm: VmId| Some((vm, core.key(&core.site.state.vms.get(&vm)?.chain.k0)));
            new.into_iter().filter_map(key).collect::<Vec<(VmId, SecretKey)>>()
        });
        for (vm, k0) in keys.await? {
            let key = opening_key(&k0);
            let known = Known { key, block: None, newest: HashMap::new(), skipped: 0 };
            self.vms.insert(vm, known);
        }
        Ok(())
    }

    fn view(&self, shown: Vec<Candidate>, dropped: usize) -> View {
        let at = now();
        let mut samples = Vec::new();
        for Candidate { name, vm, series } in shown {
            let Some(known) = self.vms.get(&vm) else { continue };
            for key in series {
                let Some(newest) = known.newest.get(&key) else { continue };
                samples.push(Sample {
                    vm: name.clone(),
                    measure: key.0.to_string(),
                    format: key.1,
                    value: newest.value,
                    age: at.since(newest.at),
                });
            }
        }
        View { samples, dropped, skipped: self.skipped }
    }
}

impl Known {
    /// Reads what came since the last time; false if it was not all, until then or since the
    /// database fails, which is told of elsewhere: what was read before ages.
    async fn read(
        &mut self,
        vm: VmId,
        measures: &[Measure],
        monitor: &Monitor,
        until: Instant,
    ) -> bool {
        let asked = Asked { vm, measures: measures.to_vec(), last: 1, is_primary: true };
        while Instant::now() < until {
            let shown = match self.block {
                None => monitor.newest(&asked, Some(&self.key)).await,
                Some(block) => monitor.after(&asked, block, Some(&self.key)).await,
            };
            let Ok(shown) = shown else { return false };
            if self.block.replace(shown.last) == Some(shown.last) {
                return true;
            }
            for seen in shown.values {
                self.skipped += u64::from(!self.take(&seen));
            }
        }
        false
    }

    /// Takes a value if it is newer than the one that is known; false if it is no number.
    fn take(&mut self, seen: &Seen) -> bool {
        let Some(value) = seen.reading.number().filter(|value| value.is_finite()) else {
            return false;
        };
        let place = (seen.epoch, seen.number);
        let newest = Newest { place, at: seen.at, value };
        let series = (seen.measure.clone(), format(seen.format));
        let kept = self.newest.entry(series).or_insert(newest);
        if kept.place < place {
            *kept = newest;
        }
        true
    }
}

/// The first series in order of the VMs' names, and how many are too many. Of VMs with one name
/// the second is called by its id, so that no series is there twice.
fn choose(mut all: Vec<Candidate>, max: usize) -> (Vec<Candidate>, usize) {
    all.sort();
    let mut names = HashSet::new();
    let (mut left, mut dropped) = (max, 0);
    for candidate in &mut all {
        if !names.insert(candidate.name.clone()) {
            candidate.name = candidate.vm.to_string();
        }
        let fits = candidate.series.len().min(left);
        left -= fits;
        dropped += candidate.series.len() - fits;
        candidate.series = std::mem::take(&mut candidate.series).into_iter().take(fits).collect();
    }
    all.retain(|candidate| !candidate.series.is_empty());
    (all, dropped)
}

impl View {
    pub(super) fn write(&self, to: &mut Writer<'_>) -> fmt::Result {
        let samples = |of: fn(&Sample) -> f64| {
            self.samples.iter().map(move |sample| {
                let labels = [
                    ("vm", sample.vm.as_str()),
                    ("measure", sample.measure.as_str()),
                    ("format", sample.format),
                ];
                (labels, of(sample))
            })
        };
        to.gauge(
            "vm_kpi",
            None,
            "The newest value of a measure of a VM that this site is the primary of, in the \
             measure's own unit, whether it only grows or not",
            samples(|sample| sample.value),
        )?;
        to.gauge(
            "vm_kpi_age",
            Some(Unit::Seconds),
            "Since the newest value was measured, by the clocks of the two sites",
            samples(|sample| sample.age.as_secs_f64()),
        )?;
        to.one(
            "vm_kpi_series_dropped",
            None,
            "Series of KPIs that are beyond metrics.max_series and not shown",
            self.dropped as f64,
        )?;
        to.counter(
            "vm_kpi_values_skipped",
            "Values of KPIs that were read and are no numbers",
            self.skipped,
        )
    }
}

#[cfg(test)]
mod tests {
    use monitoring::block::Reading;

    use super::*;
    use crate::metrics::snapshot::{SiteView, Snapshot, write};

    fn candidate(name: &str, vm: u8, measures: &[&str]) -> Candidate {
        let series = measures.iter().map(|name| (name.parse().unwrap(), "raw")).collect();
        Candidate { name: name.to_owned(), vm: VmId([vm; 16]), series }
    }

    #[test]
    fn the_first_series_by_name_are_shown_and_the_others_counted() {
        let all = || {
            vec![
                candidate("web", 1, &["web.users", "cpu_share"]),
                candidate("mail", 3, &["cpu_share"]),
                candidate("web", 2, &["cpu_share"]),
            ]
        };
        let names = |max: usize| {
            let (shown, dropped) = choose(all(), max);
            let one = |c: Candidate| (c.name, c.series.len());
            (shown.into_iter().map(one).collect::<Vec<_>>(), dropped)
        };
        let second = VmId([2; 16]).to_string();
        let named = |all: &[(&str, usize)]| {
            all.iter().map(|(name, series)| ((*name).to_owned(), *series)).collect::<Vec<_>>()
        };
        assert_eq!(names(9), (named(&[("mail", 1), ("web", 2), (&second, 1)]), 0));
        assert_eq!(names(2), (named(&[("mail", 1), ("web", 1)]), 2));
        assert_eq!(names(0), (vec![], 4));
    }

    #[test]
    fn a_late_value_does_not_take_the_place_of_a_newer_one_and_text_counts_as_skipped() {
        let key = opening_key(&SecretKey::from_seed(&[1; 32]));
        let mut known = Known { key, block: None, newest: HashMap::new(), skipped: 0 };
        let seen = |epoch, number, reading| Seen {
            epoch: Epoch(epoch),
            number,
            at: Time(number),
            received: Time(0),
            measure: "web.users".parse().unwrap(),
            format: Format::Raw,
            of: 1,
            reading,
        };
        let value = |known: &Known| known.newest.values().map(|n| n.value).collect::<Vec<_>>();
        assert!(!known.take(&seen(0, 1, Reading::Text("many".into()))));
        assert!(!known.take(&seen(0, 2, Reading::Number(f64::NAN))));
        assert!(!known.take(&seen(0, 3, Reading::Content(b"5".to_vec()))));
        assert_eq!(value(&known), Vec::<f64>::new());
        assert!(known.take(&seen(1, 5, Reading::Integer(7))));
        assert!(known.take(&seen(0, 9, Reading::Integer(8))));
        assert!(known.take(&seen(1, 4, Reading::Text("9".into()))));
        assert_eq!(value(&known), [7.0]);
        assert!(known.take(&seen(1, 6, Reading::Text("10.5".into()))));
        assert_eq!(value(&known), [10.5]);
    }

    #[test]
    fn a_label_is_escaped_whatever_a_name_holds() {
        let sample = Sample {
            vm: "a\"} 1\nsojourn_vms 9 \\".to_owned(),
            measure: "web.users".to_owned(),
            format: "raw",
            value: 3.5,
            age: Duration::from_millis(1500),
        };
        let kpis = Some(View { samples: vec![sample], dropped: 2, skipped: 4 });
        let snapshot = Snapshot {
            uptime: Duration::ZERO,
            site: SiteView::default(),
            reachable: vec![],
            transfers: ["source", "destination"]
                .map(|role| (role, model::Bytes(0), model::Bytes(0))),
            census: monitoring::book::Census::default(),
            kpis,
        };
        let mut text = String::new();
        write(snapshot, &mut text);
        let labels = r#"{vm="a\"} 1\nsojourn_vms 9 \\",measure="web.users",format="raw"}"#;
        for line in [
            &format!("sojourn_vm_kpi{labels} 3.5\n"),
            &format!("sojourn_vm_kpi_age_seconds{labels} 1.5\n"),
            "sojourn_vm_kpi_series_dropped 2.0\n",
            "sojourn_vm_kpi_values_skipped_total 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("\nsojourn_vms 9"), "{text}");
    }
}
