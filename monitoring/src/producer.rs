//! What becomes of measurements: which are taken, when they are told, and as what.
//!
//! A plain value without a clock: times are passed in, and [`Producer::next`] says when it wants to
//! be called again. All of it is in its [`State`], which is kept with the values that came of it,
//! and moves with the VM: intervals go on at the next site where they were.
//!
//! ```text
//!   sample ─▶ meter ─┐   interval       delivery, format
//!                    ├──▶ a value ─▶ window or condition ─▶ values that are due ─▶ numbered blocks
//!   row of a file ───┘
//! ```

use std::time::Duration;

use model::monitoring::{Comparison, Condition, Delivery, Format, Measure, Monitoring, Specifier};
use model::{Epoch, Time, VmId, limit};
use serde::{Deserialize, Serialize};

use crate::block::{Block, MAX_BLOCK_BYTES, MAX_VALUE_BYTES, MAX_VALUES, Reading, Value};
use crate::sample::{Made, Meter, Sample, measure};
use crate::seal;

/// The shortest interval at which the hypervisor is asked, which 0 stands for, in milliseconds.
pub const MIN_INTERVAL_MS: u32 = 100;
/// How old a row may be by the guest's clock; an older one counts for the moment in which it comes.
const OLDEST_ROW: Duration = Duration::from_secs(24 * 3600);
/// Values that a window holds; one more ends it early.
pub const MAX_WINDOW: usize = 65_536;
/// Bytes of values that a window holds; what goes beyond ends it early.
const MAX_WINDOW_BYTES: usize = 1 << 20;

/// All that measuring is about: kept, and moved with the VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The number of the next value.
    pub next: u64,
    /// The number of the last row that was taken of those that the guest offers.
    pub row: i64,
    /// When the newest row was stored.
    newest_row: Time,
    /// Values that could not be told, for they were too large.
    pub too_large: u64,
    /// What was counted.
    pub meter: Meter,
    series: Vec<Series>,
    /// What blocks are to be made of. It is kept as blocks.
    #[serde(skip)]
    due: Vec<Due>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            next: 1,
            row: 0,
            newest_row: Time::default(),
            too_large: 0,
            meter: Meter::default(),
            series: vec![],
            due: vec![],
        }
    }
}

/// What is known of one specifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Series {
    specifier: Specifier,
    /// When the next measurement is due.
    measure: Time,
    /// The newest that came before it was due: applications write when they like.
    held: Option<Reading>,
    /// What a ratio was made of at the measurement before.
    before: Option<(f64, f64)>,
    /// When the window ends.
    deliver: Time,
    window: Window,
    condition: Watch,
}

/// Values that are not told yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Window {
    /// Each of them, where each is told.
    each: Vec<(Time, Reading)>,
    /// Their numbers, where the middle one is told.
    numbers: Vec<f64>,
    count: u32,
    least: f64,
    most: f64,
    sum: f64,
    bytes: usize,
}

/// Where a condition stands.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Watch {
    /// It was true, and the value has not been back since.
    spent: bool,
    /// Since when the comparison holds.
    since: Option<Time>,
}

/// A value that is to be told now.
#[derive(Debug, Clone, PartialEq)]
struct Due {
    specifier: u16,
    at: Time,
    of: u32,
    reading: Reading,
}

/// Measures one VM by its monitoring section.
#[derive(Debug, Clone)]
pub struct Producer {
    section: Monitoring,
    state: State,
}

impl Producer {
    /// Goes on from `state`, which another site may have left, or from nothing.
    ///
    /// No time of it lies further in the future than an interval takes: the other site's clock may
    /// have been ahead, and nothing may wait for it.
    pub fn new(section: &Monitoring, mut state: State, now: Time) -> Self {
        state.newest_row = state.newest_row.min(now);
        for series in &mut state.series {
            series.measure = series.measure.min(now.after(series.interval()));
            series.deliver = series.deliver.min(now.after(series.delivery()));
            series.window.each.iter_mut().for_each(|(at, _)| *at = (*at).min(now));
            series.condition.since = series.condition.since.map(|since| since.min(now));
        }
        let mut producer = Self { section: Monitoring::default(), state };
        producer.adopt(section, now);
        producer
    }

    /// Measures by another section from now on. What both specify goes on; what was gathered for
    /// the others is told, in the blocks that come back.
    pub fn set_section(
        &mut self,
        section: &Monitoring,
        (vm, epoch): (VmId, Epoch),
        now: Time,
    ) -> Vec<Block> {
        if *section == self.section {
            return vec![];
        }
        for (place, series) in self.state.series.iter_mut().enumerate() {
            let stays = section.specifiers.contains(&series.specifier);
            if !stays && matches!(series.specifier.delivery, Delivery::Every(_)) {
                series.close(place, now, &mut self.state.due);
            }
        }
        let blocks = self.blocks(vm, epoch, now);
        self.adopt(section, now);
        blocks
    }

    fn adopt(&mut self, section: &Monitoring, now: Time) {
        let mut old = std::mem::take(&mut self.state.series);
        let series = section.specifiers.iter().map(|specifier| {
            match old.iter().position(|series| series.specifier == *specifier) {
                Some(at) => old.remove(at),
                None => Series::new(specifier, now),
            }
        });
        self.state.series = series.collect();
        self.section = section.clone();
    }

    /// When something is to be done: a sample taken, or blocks made.
    pub fn next(&self) -> Option<Time> {
        let due = self.state.due.first().map(|due| due.at);
        self.state.series.iter().filter_map(Series::next).chain(due).min()
    }

    /// Whether the hypervisor is to be asked now.
    pub fn wants_sample(&self, now: Time) -> bool {
        let mut of_vm = self.state.series.iter().filter(|series| series.is_of_vm());
        of_vm.any(|series| series.measure <= now)
    }

    /// Whether the hypervisor is asked at all.
    pub fn samples(&self) -> bool {
        self.state.series.iter().any(Series::is_of_vm)
    }

    /// What the hypervisor has counted.
    pub fn sample(&mut self, now: Time, sample: Sample) {
        self.state.meter.take(sample);
        let meter = self.state.meter;
        let seconds = now.0 as f64 / 1000.0;
        for (place, series) in self.state.series.iter_mut().enumerate() {
            let Measure::Vm(what) = series.specifier.measure else { continue };
            if series.measure > now {
                continue;
            }
            series.measured(now);
            let value = match measure(&meter, what, seconds) {
                Some(Made::Now(number)) => Some(number),
                Some(Made::Ratio(of, each)) => {
                    let before = series.before.replace((of, each));
                    before.and_then(|(of_then, each_then)| {
                        let each = each - each_then;
                        (each > 0.0).then(|| ((of - of_then) / each).max(0.0))
                    })
                }
                None => None,
            };
            if let Some(number) = value {
                series.take(place, now, Reading::of_number(number), &mut self.state.due);
            }
        }
    }

    /// A row that the application has written: its number in the guest, when it was stored there,
    /// and its fields.
    ///
    /// A row that was taken before is passed over.
    pub fn row(
        &mut self,
        now: Time,
        (row, saved): (i64, Time),
        table: &str,
        columns: &[(String, String)],
    ) {
        let Some(at) = self.time_of(now, row, saved) else { return };
        for (place, series) in self.state.series.iter_mut().enumerate() {
            let Measure::Kpi { table: file, column } = &series.specifier.measure else { continue };
            if file != table {
                continue;
            }
            let Some((_, text)) = columns.iter().find(|(name, _)| name == column) else { continue };
            if text.len() > MAX_VALUE_BYTES {
                self.state.too_large += 1;
                continue;
            }
            series.written(place, at, Reading::of_text(text), &mut self.state.due);
        }
    }

    /// A file of `encrypted/` that the application has written.
    pub fn content(&mut self, now: Time, (row, saved): (i64, Time), file: &str, content: Vec<u8>) {
        let Some(at) = self.time_of(now, row, saved) else { return };
        if content.len() > MAX_VALUE_BYTES {
            self.state.too_large += 1;
            return;
        }
        for (place, series) in self.state.series.iter_mut().enumerate() {
            let is_it =
                |measure: &Measure| matches!(measure, Measure::Encrypted { file: f } if f == file);
            if is_it(&series.specifier.measure) {
                let reading = Reading::Content(content.clone());
                series.written(place, at, reading, &mut self.state.due);
            }
        }
    }

    /// Rows come from after this one on: the guest's database is another than it was.
    pub fn begin_rows(&mut self, row: i64) {
        self.state.row = row;
    }

    /// The time that a row counts for, if it is new: when it was stored, as far as the guest's clock
    /// can be believed. Rows may have waited, for a site that was down or a guest that was moved.
    fn time_of(&mut self, now: Time, row: i64, saved: Time) -> Option<Time> {
        if row <= self.state.row {
            return None;
        }
        self.state.row = row;
        let is_old = now.since(saved) > OLDEST_ROW;
        let at = if is_old { now } else { saved };
        // Never before the row before it, and not in the future.
        let at = at.max(self.state.newest_row).min(now);
        self.state.newest_row = at;
        Some(at)
    }

    /// Makes blocks of all that is due by now.
    pub fn blocks(&mut self, vm: VmId, epoch: Epoch, now: Time) -> Vec<Block> {
        for (place, series) in self.state.series.iter_mut().enumerate() {
            series.pass(place, now, &mut self.state.due);
        }
        let mut due = std::mem::take(&mut self.state.due).into_iter().peekable();
        let mut blocks = Vec::new();
        while due.peek().is_some() {
            let (mut open, mut hidden, mut bytes) = (Vec::new(), Vec::new(), 0);
            let fits = |bytes: usize, count: usize, next: &Due| {
                count < MAX_VALUES && bytes + next.reading.size() + 32 <= MAX_BLOCK_BYTES - 1024
            };
            while let Some(next) = due.next_if(|next| {
                let count = open.len() + hidden.len();
                count == 0 || fits(bytes, count, next)
            }) {
                bytes += next.reading.size() + 32;
                let is_sealed = self.section.specifiers[usize::from(next.specifier)].sealed;
                let after_ms = i64::try_from(next.at.0).unwrap_or(i64::MAX)
                    - i64::try_from(now.0).unwrap_or(i64::MAX);
                let Due { specifier, of, reading, .. } = next;
                let value = Value { specifier, after_ms, of, reading };
                if is_sealed { hidden.push(value) } else { open.push(value) }
            }
            let first = self.state.next;
            let sealed = match (&self.section.sealing_key, hidden.is_empty()) {
                (Some(key), false) => seal::values(key, (vm, epoch, first), &hidden),
                _ => None,
            };
            let section = self.section.id();
            let block = Block { vm, epoch, first, section, at: now, open, sealed };
            // Without a key nothing is sealed, and never told in the open.
            if block.count() > 0 {
                self.state.next = block.last() + 1;
                blocks.push(block);
            }
        }
        blocks
    }

    /// The section that it measures by.
    pub fn section(&self) -> &Monitoring {
        &self.section
    }

    /// All that must be kept, and moved with the VM. What was measured and is not in a block yet is
    /// not in it.
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl State {
    /// Whether one can go on from it. What comes with a VM from another site may be anything.
    pub fn is_sound(&self) -> bool {
        (1..1 << 62).contains(&self.next)
            && self.too_large < 1 << 62
            && self.series.len() <= limit::MAX_SPECIFIERS
            && self.series.iter().all(Series::is_sound)
    }

    /// Without what was gathered and not told.
    pub fn without_windows(&self) -> Self {
        let mut state = self.clone();
        for series in &mut state.series {
            series.held = None;
            series.window = Window::default();
            series.condition.since = None;
        }
        state
    }
}

impl Series {
    fn new(specifier: &Specifier, now: Time) -> Self {
        let mut series = Self {
            specifier: specifier.clone(),
            // What an application wrote before is due at once.
            measure: match specifier.measure {
                Measure::Vm(_) => now,
                Measure::Kpi { .. } | Measure::Encrypted { .. } => Time::default(),
            },
            held: None,
            before: None,
            deliver: now,
            window: Window::default(),
            condition: Watch::default(),
        };
        series.deliver = now.after(series.delivery());
        series
    }

    fn is_sound(&self) -> bool {
        let fits = |reading: &Reading| reading.size() <= MAX_VALUE_BYTES && reading.is_sound();
        let window = &self.window;
        let sums = [window.least, window.most, window.sum];
        let numbers = match self.specifier.format {
            Format::Median => window.numbers.len() == window.count as usize,
            _ => window.numbers.is_empty(),
        };
        let each = window.each.iter().map(|(_, reading)| reading);
        numbers
            && window.numbers.iter().chain(&sums).all(|number| number.is_finite())
            && each.chain(&self.held).all(fits)
            && window.each.len() <= MAX_WINDOW
            && window.bytes <= MAX_WINDOW_BYTES + MAX_VALUE_BYTES
            && window.count < u32::MAX
    }

    /// Between two measurements.
    fn interval(&self) -> Duration {
        let ms = match self.specifier.interval_ms {
            ms if self.is_of_vm() => ms.max(MIN_INTERVAL_MS),
            ms => ms,
        };
        Duration::from_millis(ms.into())
    }

    /// Between two deliveries.
    fn delivery(&self) -> Duration {
        match self.specifier.delivery {
            Delivery::Every(ms) => Duration::from_millis(ms.into()),
            Delivery::When(_) => Duration::ZERO,
        }
    }

    fn is_of_vm(&self) -> bool {
        matches!(self.specifier.measure, Measure::Vm(_))
    }

    fn next(&self) -> Option<Time> {
        let measure = (self.is_of_vm() || self.held.is_some()).then_some(self.measure);
        let deliver = match &self.specifier.delivery {
            Delivery::Every(_) => (!self.window.is_empty()).then_some(self.deliver),
            Delivery::When(condition) => self.condition.fires(condition),
        };
        [measure, deliver].into_iter().flatten().min()
    }

    /// The next measurement is one interval later; what was missed meanwhile is not made up for.
    fn measured(&mut self, now: Time) {
        let interval = self.interval();
        let next = self.measure.after(interval);
        self.measure = if next > now { next } else { now.after(interval) };
    }

    /// What the application has written: a value at once, or the newest of its interval.
    fn written(&mut self, place: usize, now: Time, reading: Reading, due: &mut Vec<Due>) {
        self.release(place, now, due);
        if self.measure > now {
            self.held = Some(reading);
            return;
        }
        self.measured(now);
        self.take(place, now, reading, due);
    }

    /// The newest of an interval that is over counts from its end.
    fn release(&mut self, place: usize, now: Time, due: &mut Vec<Due>) {
        let at = self.measure;
        if at <= now
            && let Some(held) = self.held.take()
        {
            self.measured(at);
            self.take(place, at, held, due);
        }
    }

    /// A value.
    fn take(&mut self, place: usize, now: Time, reading: Reading, due: &mut Vec<Due>) {
        match self.specifier.delivery.clone() {
            Delivery::Every(0) => {
                self.window.add(self.specifier.format, now, reading);
                self.close(place, now, due);
            }
            Delivery::Every(_) => {
                self.end_window(place, now, due);
                self.window.add(self.specifier.format, now, reading);
                if self.window.is_full() {
                    self.close(place, now, due);
                }
            }
            Delivery::When(condition) => self.watch(place, now, reading, &condition, due),
        }
    }

    fn watch(
        &mut self,
        place: usize,
        now: Time,
        reading: Reading,
        condition: &Condition,
        due: &mut Vec<Due>,
    ) {
        let Some(number) = reading.number() else { return };
        // What held until now has held for so long, whatever comes.
        self.end_watch(place, now, condition, due);
        if is_back(condition, number) {
            self.condition.spent = false;
        }
        if holds(condition, number) && !self.condition.spent {
            self.condition.since.get_or_insert(now);
            if self.specifier.format == Format::Raw {
                self.window = Window::default();
            }
            self.window.add(self.specifier.format, now, reading);
            self.end_watch(place, now, condition, due);
        } else {
            self.condition.since = None;
            self.window = Window::default();
        }
    }

    fn end_watch(&mut self, place: usize, now: Time, condition: &Condition, due: &mut Vec<Due>) {
        let Some(at) = self.condition.fires(condition).filter(|at| *at <= now) else { return };
        self.condition = Watch { spent: true, since: None };
        // The value as it is when it has held for so long, whenever it came.
        self.window.each.iter_mut().for_each(|(came, _)| *came = at);
        self.close(place, at, due);
    }

    /// Time has passed.
    fn pass(&mut self, place: usize, now: Time, due: &mut Vec<Due>) {
        self.release(place, now, due);
        match self.specifier.delivery.clone() {
            Delivery::Every(_) => self.end_window(place, now, due),
            Delivery::When(condition) => self.end_watch(place, now, &condition, due),
        }
    }

    fn end_window(&mut self, place: usize, now: Time, due: &mut Vec<Due>) {
        let Delivery::Every(ms) = self.specifier.delivery else { return };
        if self.deliver > now {
            return;
        }
        self.close(place, self.deliver.min(now), due);
        // Windows keep their beat, whatever was late.
        let (ms, late) = (u64::from(ms.max(1)), millis(now.since(self.deliver)));
        self.deliver = Time(self.deliver.0 + ms * (late / ms + 1));
    }

    /// Tells what the window has, and empties it.
    fn close(&mut self, place: usize, at: Time, due: &mut Vec<Due>) {
        let specifier = u16::try_from(place).expect("specifiers are bounded");
        let window = std::mem::take(&mut self.window);
        let format = self.specifier.format;
        if format == Format::Raw {
            let each = window.each.into_iter();
            due.extend(each.map(|(at, reading)| Due { specifier, at, of: 1, reading }));
        } else if window.count > 0 {
            let of = window.count;
            let reading = Reading::of_number(window.summary(format));
            // A sum beyond all numbers has no mean that could be told.
            if reading.is_sound() {
                due.push(Due { specifier, at, of, reading });
            }
        }
    }
}

impl Window {
    fn add(&mut self, format: Format, at: Time, reading: Reading) {
        if format == Format::Raw {
            self.bytes += reading.size() + 32;
            self.each.push((at, reading));
            return;
        }
        // What is no number has no mean.
        let Some(number) = reading.number() else { return };
        if format == Format::Median {
            self.numbers.push(number);
        }
        let is_first = self.count == 0;
        self.least = if is_first { number } else { self.least.min(number) };
        self.most = if is_first { number } else { self.most.max(number) };
        self.sum += number;
        self.count = self.count.saturating_add(1);
    }

    fn is_empty(&self) -> bool {
        self.each.is_empty() && self.count == 0
    }

    fn is_full(&self) -> bool {
        let count = self.each.len().max(self.numbers.len());
        count >= MAX_WINDOW || self.bytes >= MAX_WINDOW_BYTES || self.count == u32::MAX
    }

    fn summary(mut self, format: Format) -> f64 {
        match format {
            Format::Min => self.least,
            Format::Max => self.most,
            Format::Mean => self.sum / f64::from(self.count),
            Format::Median => {
                self.numbers.sort_unstable_by(f64::total_cmp);
                let middle = self.numbers.len() / 2;
                if self.numbers.len().is_multiple_of(2) {
                    f64::midpoint(self.numbers[middle - 1], self.numbers[middle])
                } else {
                    self.numbers[middle]
                }
            }
            Format::Raw => unreachable!("raw values are told one by one"),
        }
    }
}

impl Watch {
    /// When the condition becomes true if the value stays as it is.
    fn fires(&self, condition: &Condition) -> Option<Time> {
        let lasting = Duration::from_millis(condition.lasting_ms.into());
        self.since.filter(|_| !self.spent).map(|since| since.after(lasting))
    }
}

fn holds(condition: &Condition, number: f64) -> bool {
    match condition.comparison {
        Comparison::Above => number > condition.threshold.value(),
        Comparison::Below => number < condition.threshold.value(),
    }
}

/// Whether the value is back by the hysteresis.
fn is_back(condition: &Condition, number: f64) -> bool {
    let (threshold, by) = (condition.threshold.value(), condition.hysteresis.value());
    match condition.comparison {
        Comparison::Above => number <= threshold - by,
        Comparison::Below => number >= threshold + by,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
