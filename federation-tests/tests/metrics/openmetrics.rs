//! Reads OpenMetrics' text format, and lets nothing pass that is not legal in it.

use std::collections::{BTreeMap, BTreeSet};

/// Everything that a site shows at one moment.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    pub(crate) families: BTreeMap<String, Family>,
    /// By series: name and labels as they are written.
    samples: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) unit: String,
    /// The names of its labels.
    pub(crate) labels: BTreeSet<String>,
}

/// Units that Prometheus recommends, and what ends a name in their place.
const UNITS: [&str; 2] = ["seconds", "bytes"];

impl Exposition {
    /// # Panics
    ///
    /// If the text is not what it should be.
    pub(crate) fn read(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let mut all = Self::default();
        let mut current = String::new();
        for line in body.lines() {
            match line.strip_prefix("# ") {
                Some(said) => current = all.descriptor(said, &current),
                None => all.sample(line, &current),
            }
        }
        for (name, family) in &all.families {
            all.check(name, family);
        }
        all
    }

    fn descriptor(&mut self, said: &str, current: &str) -> String {
        let mut words = said.splitn(3, ' ');
        let [what, name, rest] = [(); 3].map(|()| words.next().unwrap());
        assert!(name.starts_with("sojourn_"), "{said}");
        if what == "HELP" {
            let help = Family { help: rest.to_owned(), ..Family::default() };
            assert!(self.families.insert(name.to_owned(), help).is_none(), "{name} comes twice");
            return name.to_owned();
        }
        assert_eq!(name, current, "{said}");
        let family = self.families.get_mut(name).unwrap();
        let field = match what {
            "TYPE" => &mut family.kind,
            "UNIT" => &mut family.unit,
            other => panic!("{other}: {said}"),
        };
        assert!(field.is_empty(), "{said}");
        rest.clone_into(field);
        name.to_owned()
    }

    fn sample(&mut self, line: &str, current: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let family = self.families.get_mut(current).unwrap();
        let suffixes: &[&str] = match family.kind.as_str() {
            "gauge" => &[""],
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{current} is a {other}"),
        };
        let is_of_family = |suffix: &&str| name.strip_suffix(*suffix) == Some(current);
        assert!(suffixes.iter().any(is_of_family), "{line} stands under {current}");
        for label in label_names(labels.strip_suffix('}').unwrap()) {
            if label != "le" {
                family.labels.insert(label);
            }
        }
        let value: f64 = value.parse().unwrap();
        assert!(value.is_finite(), "{line}");
        assert!(family.kind == "gauge" || value >= 0.0, "{line}");
        assert!(self.samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
    }

    fn check(&self, name: &str, family: &Family) {
        assert!(family.help.len() > 10 && family.help.ends_with('.'), "{name}: {:?}", family.help);
        let legal = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.chars().all(legal), "{name}");
        let unit = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}")));
        assert_eq!(unit.copied().unwrap_or_default(), family.unit, "the unit of {name}");
        let odd = ["_ms", "_millis", "_ns", "_kib", "_mib", "_minutes", "_percent"];
        assert!(!odd.iter().any(|unit| name.ends_with(unit)), "{name} is in no base unit");
        assert!(!name.ends_with("_total"), "{name}: the suffix is the format's own");
        if family.kind == "histogram" {
            self.check_buckets(name);
        }
    }

    /// Buckets rise, and the last has all.
    fn check_buckets(&self, name: &str) {
        for (series, count) in self.of(&format!("{name}_count")) {
            let labels = series.split_once('{').map_or("", |(_, labels)| labels);
            let labels = labels.trim_end_matches('}');
            let rest = if labels.is_empty() { "}".to_owned() } else { format!(",{labels}}}") };
            let mut buckets: Vec<(f64, f64)> = self
                .of(&format!("{name}_bucket"))
                .filter(|(series, _)| series.ends_with(&rest))
                .filter_map(|(series, count)| {
                    let bound = series.split("le=\"").nth(1)?.split('"').next()?;
                    let own = format!("{name}_bucket{{le=\"{bound}\"{rest}");
                    let bound = bound.replace("+Inf", "inf").parse().unwrap();
                    (own == series).then_some((bound, count))
                })
                .collect();
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{series}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{series}");
        }
    }

    /// A sample by its name and its labels as they are written.
    pub(crate) fn get(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }

    /// All samples of a name.
    pub(crate) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let is_named = move |series: &str| series.split('{').next() == Some(name);
        let all = self.samples.iter().filter(move |(series, _)| is_named(series));
        all.map(|(series, value)| (series.as_str(), *value))
    }

    /// The sum over all samples of a name that have these labels among theirs.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let fits = |(series, _): &(&str, f64)| labels.iter().all(|label| series.contains(label));
        self.of(name).filter(fits).map(|(_, value)| value).sum()
    }

    /// The names of all samples.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let name = |series: &String| series.split('{').next().unwrap().to_owned();
        self.samples.keys().map(name).collect()
    }
}

/// The names in `a="…",b="…"`, whose values may hold anything that is escaped.
fn label_names(labels: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap();
        names.push(name.to_owned());
        let mut is_escaped = false;
        let end = after.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        let after = &after[end.unwrap() + 1..];
        assert!(after.is_empty() || after.starts_with(','), "{labels}");
        rest = after.trim_start_matches(',');
    }
    names
}
