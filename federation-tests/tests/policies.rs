//! Every example of `policies/examples` at work between real nodes, policies that are taken up on
//! SIGHUP, and rules that would not end.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use federation_tests::process::application::Application;
use federation_tests::process::{Federation, Guest, Outcome, SOON, Site};
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};
use model::vm::Restrictions;
use serde_json::Value;

/// Exit codes of `sojourn`.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 4;

/// What a node logs when it has taken its policies up, and when it has not.
const IN_FORCE: &str = "are in force";
const NOT_TAKEN: &str = "were not taken up";

/// A rule that takes hours, for VMs of one name.
const RUNAWAY: &str = "package sojourn.admit\n\nimport rego.v1\n\nrefuse contains \"never\" if {
\tinput.descriptor.name == \"endless\"
\tn := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
\tsome a in n; some b in n; some c in n; some d in n; some e in n; some f in n; some g in n
\ta + b + c + d + e + f + g == 0\n}\n";

fn policy(site: &Site, file: &str) -> PathBuf {
    site.folder().join("policies").join(file)
}

/// Has a site read its policies again, and waits until it says how that ended.
fn reload(federation: &Federation, site: &str, end: &str) {
    let site = &federation[site];
    let count = || site.log_text().matches(end).count();
    let before = count();
    site.hang_up();
    federation.wait_for(end, SOON, || if count() > before { Ok(()) } else { Err(String::new()) });
}

/// Copies an example and its tests to where a site has its policies, in place of those of before.
fn adopt(federation: &Federation, site: &str, example: &str) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    let (decision, _) = example.split_once('-').unwrap();
    for ending in [".rego", "_test.rego"] {
        let to = policy(&federation[site], &format!("{decision}{ending}"));
        fs::copy(examples.join(format!("{example}{ending}")), to).unwrap();
    }
    reload(federation, site, IN_FORCE);
}

/// Puts one VM after another into a site's library, and returns their ids.
fn import<const N: usize>(federation: &Federation, site: &str, names: [&str; N]) -> [String; N] {
    names.map(|name| import_restricted(federation, site, name, Restrictions::default()))
}

fn import_restricted(federation: &Federation, site: &str, name: &str, by: Restrictions) -> String {
    let package = federation.restricted(name, by).display().to_string();
    federation[site].done(&["vm", "import", &package])["id"].as_str().unwrap().to_owned()
}

/// One of a group whose VMs stay apart.
fn apart(group: &str) -> Restrictions {
    Restrictions { apart: Some(group.to_owned()), ..Restrictions::default() }
}

/// Who would take a VM, without taking it there.
fn ask(site: &Site, vm: &str) -> Outcome {
    site.run(&["vm", "place", vm, "--dry-run"])
}

/// The offers that a site has for a VM of its own, best first.
fn ranking(site: &Site, vm: &str) -> Vec<String> {
    let asked = ask(site, vm);
    assert_eq!(asked.code, 0, "{asked:?}");
    let lines = asked.json()["details"].as_array().unwrap().clone();
    let text = |line: &Value| line.as_str().unwrap().to_owned();
    let offers: Vec<String> = lines.iter().map(text).collect();
    // A place that only stores is no answer to who would run it.
    offers.into_iter().filter(|line| !line.contains("stores only")).collect()
}

fn running(federation: &Federation, vm: &str, site: &str) -> Guest {
    federation.wait_for(&format!("{vm} runs at {site}"), SOON, || {
        federation.runs_at(vm, site).ok_or_else(|| format!("{:#?}", federation.guests(vm)))
    })
}

/// Places VMs at the same time, and returns how each ended.
fn place_at_once<const N: usize>(site: &Site, names: [&str; N]) -> [Outcome; N] {
    std::thread::scope(|scope| {
        let place = |name| scope.spawn(move || site.run(&["vm", "place", name]));
        names.map(place).map(|one| one.join().unwrap())
    })
}

#[test]
fn a_quota_of_a_peer_holds_also_for_vms_that_are_placed_at_once() {
    let federation = Federation::chain(&["gamma", "b"]);
    let gamma = &federation["gamma"];
    federation["b"].host("b1", 4);
    adopt(&federation, "b", "admit-quota");
    import(&federation, "gamma", ["one", "two"]);
    let ended = place_at_once(gamma, ["one", "two"]);
    let done = ended.iter().filter(|one| one.code == 0).count();
    assert_eq!(done, 1, "{ended:?}");
    let left = if ended[0].code == 0 { "two" } else { "one" };
    gamma.run(&["vm", "place", left]).says(REFUSED, &["your quota here is 1 VMs"]);
}

#[test]
fn a_site_takes_vms_only_under_a_contract_only_of_certain_names_and_only_for_enough() {
    let mut federation = Federation::new();
    for name in ["a", "b"] {
        let site = federation.add(name);
        site.configure("offer", "price_milli", 6);
        site.start();
    }
    federation.join("a", "b");
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 4);
    import(&federation, "a", ["web", "miner"]);
    let poor = Restrictions { max_price_milli: Some(4), ..Restrictions::default() };
    import_restricted(&federation, "a", "db", poor);

    adopt(&federation, "b", "admit-contract");
    ask(a, "web").says(REFUSED, &["there is no contract with you"]);
    b.done(&["peer", "set", "a", "--contract", "2026-17"]);
    ask(a, "web").says(0, &[]);

    adopt(&federation, "b", "admit-guests");
    ask(a, "miner").says(REFUSED, &["VMs that are called web or db"]);
    ask(a, "web").says(0, &[]);

    adopt(&federation, "b", "admit-price-floor");
    let words = ["the VM may cost 4 at most, this site takes at least 5", "the price is 6"];
    ask(a, "db").says(REFUSED, &words);
    ask(a, "miner").says(0, &[]);
}

#[test]
fn vms_of_a_group_never_share_a_host_and_where_policy_says_so_no_site() {
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        federation.add(name).start();
    }
    federation.join("b", "a");
    federation.join("b", "c");
    let (a, b, c) = (&federation["a"], &federation["b"], &federation["c"]);
    b.host("b1", 8);
    b.host("b2", 8);
    let group =
        ["db-1", "db-2", "db-3"].map(|name| import_restricted(&federation, "a", name, apart("db")));
    import(&federation, "a", ["web"]);
    // The hosts were free when both were asked for.
    let mut ended = place_at_once(a, ["db-1", "db-2"]);
    for (outcome, name) in ended.iter_mut().zip(["db-1", "db-2"]) {
        if outcome.code != 0 {
            assert!(outcome.err.contains("must stay apart"), "{outcome:?}");
            a.done(&["vm", "place", name]);
        }
    }
    let hosts = [0, 1].map(|at| running(&federation, &group[at], "b").host().to_owned());
    assert_ne!(hosts[0], hosts[1], "they share a host");
    ask(a, "db-3").says(REFUSED, &["has a VM of group db already, and these must stay apart"]);
    ask(a, "web").says(0, &[]);
    // Nor when the site itself moves one.
    let moved = b.run(&["vm", "migrate", "db-1", "--local-only"]);
    moved.says(REFUSED, &["must stay apart"]);

    // Another owner's word is another group.
    for name in ["db-8", "db-9"] {
        import_restricted(&federation, "c", name, apart("db"));
    }
    c.done(&["vm", "place", "db-8"]);
    ask(c, "db-9").says(0, &[]);
    adopt(&federation, "b", "admit-apart");
    ask(c, "db-9").says(REFUSED, &["this site has a VM of group db already"]);
}

#[test]
fn requests_are_passed_on_never_or_within_the_domain_or_not_too_far() {
    let federation = Federation::chain(&["a", "b", "c", "d"]);
    let (a, b, c) = (&federation["a"], &federation["b"], &federation["c"]);
    federation["d"].host("d1", 4);
    import(&federation, "a", ["web"]);
    import(&federation, "b", ["own"]);
    let bound = Restrictions { no_delegation: true, ..Restrictions::default() };
    import_restricted(&federation, "a", "bound", bound);
    ask(a, "web").says(0, &[]);
    ask(a, "bound").says(REFUSED, &["the VM's owner allows no delegation"]);

    adopt(&federation, "b", "delegate-never");
    ask(a, "web").says(REFUSED, &["this site passes no requests on"]);
    ask(b, "own").says(0, &[]);

    adopt(&federation, "b", "delegate-domain");
    ask(a, "web").says(REFUSED, &["requests from other domains are not passed on"]);
    b.done(&["peer", "set", "a", "--mark", "own-domain"]);
    ask(a, "web").says(REFUSED, &["no further site is in this domain"]);
    b.done(&["peer", "set", "c", "--mark", "own-domain"]);
    ask(a, "web").says(0, &[]);

    adopt(&federation, "c", "delegate-hops");
    ask(a, "web").says(REFUSED, &["passes on what has come less than 2 hops"]);
    ask(b, "own").says(0, &[]);
    c.host("c1", 1);
    ask(a, "web").says(0, &[]);
}

#[test]
fn a_peer_is_shown_local_offers_only_or_those_of_partners_or_a_few() {
    let mut federation = Federation::new();
    for name in ["a", "b", "c", "d"] {
        federation.add(name).start();
    }
    for (name, peer) in [("b", "a"), ("b", "c"), ("b", "d")] {
        federation.join(name, peer);
    }
    let (a, b) = (&federation["a"], &federation["b"]);
    for (site, host) in [("b", "b1"), ("c", "c1"), ("d", "d1")] {
        federation[site].host(host, 1);
    }
    import(&federation, "a", ["web"]);
    assert_eq!(ranking(a, "web").len(), 3);

    adopt(&federation, "b", "expose-local");
    let shown = ranking(a, "web");
    assert!(matches!(&shown[..], [one] if one.contains(" 0 sites further on")), "{shown:?}");

    adopt(&federation, "b", "expose-partners");
    b.done(&["peer", "set", "c", "--mark", "partner"]);
    assert_eq!(ranking(a, "web").len(), 2);

    adopt(&federation, "b", "expose-few");
    assert_eq!(ranking(a, "web").len(), 1, "a is a stranger");
    b.done(&["peer", "set", "a", "--mark", "partner"]);
    assert_eq!(ranking(a, "web").len(), 3);
}

#[test]
fn offers_are_ranked_by_partner_by_country_by_price_and_distance_and_away_from_their_group() {
    let mut federation = Federation::new();
    for (name, price, country) in [("a", 0, ""), ("b", 10, "DE"), ("c", 30, "CH"), ("d", 1, "US")] {
        let site = federation.add(name);
        site.configure("offer", "price_milli", price);
        site.configure("offer", "country", country);
        site.start();
    }
    for name in ["b", "c", "d"] {
        federation.join("a", name);
        federation[name].host("h1", 4);
    }
    let a = &federation["a"];
    import(&federation, "a", ["web"]);
    let order = |vm: &str| -> Vec<String> {
        let named = |line: &String| line.split(": class").next().unwrap().to_owned();
        ranking(a, vm).iter().map(named).collect()
    };
    assert_eq!(order("web"), ["peer d", "peer b", "peer c"], "the cheapest first");

    adopt(&federation, "a", "rank-partners");
    a.done(&["peer", "set", "c", "--mark", "partner"]);
    assert_eq!(order("web"), ["peer c", "peer d", "peer b"]);

    adopt(&federation, "a", "rank-country");
    let refused = "out of the question: peer d";
    assert_eq!(order("web"), ["peer c", "peer b", refused], "the one that is wanted most first");

    adopt(&federation, "a", "rank-price-distance");
    a.host("a1", 4);
    assert_eq!(order("web"), ["peer d", "peer b", "this site", "peer c"]);

    adopt(&federation, "a", "rank-apart");
    for name in ["db-1", "db-2", "db-3"] {
        import_restricted(&federation, "a", name, apart("db"));
    }
    assert_eq!(order("db-1"), ["this site", "peer d", "peer b", "peer c"]);
    a.done(&["vm", "place", "db-1"]);
    assert_eq!(order("db-2"), ["peer d", "peer b", "peer c"], "its host has one already");
    a.done(&["vm", "place", "db-2"]);
    assert_eq!(order("db-3"), ["peer b", "peer c"], "d has one, and one host");
    // The VM goes where the ranking says.
    let vm = a.done(&["vm", "place", "db-3"])["vm"].as_str().unwrap().to_owned();
    running(&federation, &vm, "b");
}

#[test]
fn files_of_strangers_are_relayed_and_those_of_the_own_domain_are_not() {
    let federation = Federation::chain(&["a", "b", "c"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    federation["c"].host("c1", 4);
    adopt(&federation, "b", "transfer-relayed");
    let [first, second] = import(&federation, "a", ["web", "shop"]);
    let relayed = || b.rows().iter().filter(|row| row.kind() == "relaying").count();
    a.done(&["vm", "place", "web"]);
    running(&federation, &first, "c");
    assert_eq!(relayed(), 1, "they talked directly");
    for peer in ["a", "c"] {
        b.done(&["peer", "set", peer, "--mark", "own-domain"]);
    }
    a.done(&["vm", "place", "shop"]);
    running(&federation, &second, "c");
    assert_eq!(relayed(), 1, "b passed on what could go directly");
}

#[test]
fn a_transfer_takes_the_carrier_that_the_sites_policy_says() {
    let mut federation = Federation::new();
    for name in ["a", "b"] {
        let site = federation.add(name);
        if name == "a" {
            let address = site.address();
            site.configure("proxy", "advertise", format!("quic://{address}"));
        }
        site.start();
    }
    federation.join("a", "b");
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    import(&federation, "a", ["web"]);
    adopt(&federation, "b", "share-by-peer");
    b.done(&["peer", "set", "a", "--mark", "no-udp"]);
    a.run(&["vm", "place", "web"]).says(FAILED, &["gave the transfer up"]);
    let log = b.log_text();
    assert!(log.contains("no carrier of the other proxy is allowed here"), "{log}");
    b.done(&["peer", "set", "a", "--unmark", "no-udp"]);
    assert_eq!(a.done(&["vm", "place", "web"])["result"], "done");
}

#[test]
fn what_the_application_says_moves_the_vm_where_policy_says_so() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    adopt(&federation, "a", "trigger-load");
    let users = Specifier {
        measure: "web.current_users".parse().unwrap(),
        interval_ms: 0,
        delivery: Delivery::When("> 1000".parse().unwrap()),
        format: Format::Raw,
        sealed: false,
        limit: false,
    };
    let monitoring = Monitoring { specifiers: vec![users], ..Monitoring::default() };
    let package = federation.monitored("web", None, &monitoring).display().to_string();
    let vm = a.done(&["vm", "import", &package])["id"].as_str().unwrap().to_owned();
    a.done(&["vm", "place", "web"]);
    running(&federation, &vm, "b");
    a.host("a1", 1);
    let guest = federation.wait_for("its guest is there", SOON, || {
        let is_guest = |path: &PathBuf| path.to_str().is_some_and(|path| path.contains("/run/"));
        b.stays().into_iter().find(is_guest).ok_or_else(String::new)
    });
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest);
    application.write("web", "current_users\n1200\n");
    federation.wait_for("the event is told", SOON, || {
        let events = a.run(&["vm", "events", "web"]).out;
        if events.contains("too many users for where it is") { Ok(()) } else { Err(events) }
    });
    application.disconnect();
    federation.settle(&vm, "a", true, &["a"]);
}

#[test]
fn changed_policies_are_taken_up_whole_or_refused_whole_and_what_is_wrong_is_told() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 4);
    import(&federation, "a", ["web"]);
    let write = |file: &str, text: &str| fs::write(policy(b, file), text).unwrap();
    let closed = "package sojourn.admit\n\nimport rego.v1\n\nrefuse contains \"closed today\"\n";
    write("admit.rego", closed);
    ask(a, "web").says(0, &[]);
    reload(&federation, "b", IN_FORCE);
    ask(a, "web").says(REFUSED, &["closed today"]);

    // One file is sound, and two are not: none of them is taken up.
    write("admit.rego", &closed.replace("closed today", "closed for ever"));
    write("delegate.rego", "package sojourn.delegate\n\nimport rego.v1\n\nrefuse contains := 1\n");
    write("rank.rego", "package sojourn.rank\n\nimport rego.v1\n\nscore := {}\n");
    reload(&federation, "b", NOT_TAKEN);
    let refused = ask(a, "web");
    refused.says(REFUSED, &["closed today"]);
    let log = b.log_text();
    for place in ["delegate.rego:5:", "rank.rego:1:1: it does not define `exclude`"] {
        assert!(log.contains(place), "the log does not name {place}: {log}");
    }
    let check = b.run(&["policy", "check"]);
    check.says(FAILED, &["these policies would be refused"]);
    let doctor = b.run(&["doctor"]);
    assert!(doctor.out.contains("delegate.rego:5:"), "{doctor:?}");

    for file in ["admit.rego", "delegate.rego", "rank.rego"] {
        fs::remove_file(policy(b, file)).unwrap();
    }
    reload(&federation, "b", IN_FORCE);
    ask(a, "web").says(0, &[]);
}

#[test]
fn a_runaway_rule_refuses_its_own_vm_and_keeps_nobody_else_waiting() {
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        federation.add(name).start();
    }
    federation.join("b", "a");
    federation.join("b", "c");
    let (a, b, c) = (&federation["a"], &federation["b"], &federation["c"]);
    b.host("b1", 4);
    import(&federation, "a", ["endless"]);
    let [web] = import(&federation, "c", ["web"]);
    fs::write(policy(b, "admit.rego"), RUNAWAY).unwrap();
    reload(&federation, "b", IN_FORCE);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| [(); 5].map(|()| ask(a, "endless")));
        // As long as it takes: each look must be answered while the other asks.
        let (mut slowest, mut looks) = (Duration::ZERO, 0);
        while !asking.is_finished() {
            let began = Instant::now();
            b.done(&["site", "show"]);
            ask(c, "web").says(0, &[]);
            slowest = slowest.max(began.elapsed());
            looks += 1;
        }
        for refused in asking.join().unwrap() {
            refused.says(REFUSED, &["policy failed: admit took too long"]);
        }
        assert!(looks > 0, "nobody else asked meanwhile");
        assert!(slowest < Duration::from_secs(10), "another's request took {slowest:?}");
    });
    c.done(&["vm", "place", "web"]);
    running(&federation, &web, "b");
}

#[test]
fn policy_check_lists_every_error_with_its_place_and_every_file() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    let sound = site.done(&["policy", "check"]);
    assert_eq!(sound.as_array().unwrap().len(), 7, "{sound}");
    let write = |file: &str, text: &str| fs::write(policy(site, file), text).unwrap();
    write(
        "admit.rego",
        "package sojourn.admit\n\nimport rego.v1\n\nrefuse contains reason if reason := := 1\n",
    );
    write("delegate.rego", "package sojourn.delegated\n");
    write("expose.rego", "package sojourn.expose\n\nimport rego.v1\n\nhide := 1\n");
    write("rank.rego", "package sojourn.rank\n\nimport rego.v1\n\nscore := {}\n");
    write("transfers.rego", "");
    write("share_test.rego", "package sojourn.share_test\n\nimport rego.v1\n\ntest_it if false\n");
    let check = site.run(&["policy", "check"]);
    check.says(FAILED, &["errors: these policies would be refused"]);
    let found = check.json();
    let errors = |file: &str| -> Vec<(Value, Value, String)> {
        let one = found.as_array().unwrap().iter().find(|one| one["file"] == file).unwrap();
        let error = |e: &Value| (e["line"].clone(), e["column"].clone(), e["error"].to_string());
        one["errors"].as_array().unwrap().iter().map(error).collect()
    };
    for (file, line, words) in [
        ("admit.rego", Some(5), ""),
        ("delegate.rego", Some(1), "it must be `package sojourn.delegate`"),
        ("expose.rego", Some(5), "rule `hide` must be a set of indices"),
        ("transfers.rego", None, "did you mean transfer.rego?"),
        ("share_test.rego", Some(5), "test_it does not hold"),
    ] {
        let found = errors(file);
        assert!(matches!(&found[..], [one] if one.2.contains(words)), "{file}: {found:?}");
        assert_eq!(found[0].0.as_u64(), line, "{file}: {found:?}");
        assert_eq!(found[0].1.is_u64(), line.is_some(), "{file}: {found:?}");
    }
    let missing = errors("rank.rego");
    assert_eq!(missing.len(), 2, "reasons and exclude: {missing:?}");
    assert!(errors("trigger.rego").is_empty());
}

#[test]
fn policy_explain_names_the_file_that_decided_and_the_field_that_is_wrong() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    let file = site.folder().join("input.json");
    let explain = |decision: &str, input: &Value| {
        fs::write(&file, input.to_string()).unwrap();
        site.run(&["policy", "explain", decision, "--input", file.to_str().unwrap()])
    };
    for decision in ["admit", "delegate", "expose", "rank", "transfer", "share", "trigger"] {
        let example = site.done(&["policy", "explain", decision]);
        let explained = explain(decision, &example);
        assert_eq!(explained.code, 0, "{decision}: {explained:?}");
        assert_eq!(explained.json()["whose"], "default", "{explained:?}");
    }
    let mut input = site.done(&["policy", "explain", "delegate"]);
    input["hops_left"] = 3.into();
    input["descriptor"]["restrictions"]["no_delegation"] = false.into();
    assert_eq!(explain("delegate", &input).json()["verdict"], "allow");
    let rule = "package sojourn.delegate\n\nimport rego.v1\n\nrefuse contains \"never\"\n";
    fs::write(policy(site, "delegate.rego"), rule).unwrap();
    let refused = explain("delegate", &input).json();
    assert_eq!(refused["verdict"], "refuse");
    assert_eq!(refused["reasons"], serde_json::json!(["never"]));
    assert_eq!(refused["file"], "delegate.rego");
    assert_eq!(refused["whose"], "the site's own");

    let wrong = |field: &str, value: Value, words: &[&str]| {
        let mut input = input.clone();
        *input.pointer_mut(field).unwrap() = value;
        explain("delegate", &input).says(USAGE, words);
    };
    wrong("/hops_left", "three".into(), &["input.hops_left", "invalid type"]);
    wrong("/descriptor/resources/cpus", (-1).into(), &["input.descriptor.resources.cpus"]);
    wrong("/descriptor/resources/cpus", 0.into(), &["input.descriptor: cpus must be"]);
    let mut without = input.clone();
    without.as_object_mut().unwrap().remove("to");
    explain("delegate", &without).says(USAGE, &["missing field `to`"]);
    let mut beside = input.clone();
    beside["pear"] = "beta".into();
    explain("delegate", &beside).says(USAGE, &["unknown field `pear`"]);
    fs::write(&file, "{").unwrap();
    let half = site.run(&["policy", "explain", "admit", "--input", file.to_str().unwrap()]);
    half.says(USAGE, &["the input is no JSON"]);
    site.run(&["policy", "explain", "admits"]).says(USAGE, &["policies decide admit"]);
}

#[test]
fn policy_test_runs_the_tests_of_the_site_and_of_the_defaults_that_it_uses() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    let outcomes = |run: &Outcome| -> Vec<(String, bool)> {
        let tests = run.json()["tests"].as_array().unwrap().clone();
        let one = |test: &Value| {
            (test["test"].as_str().unwrap().to_owned(), test["passed"].as_bool().unwrap())
        };
        tests.iter().map(one).collect()
    };
    let defaults = site.run(&["policy", "test"]);
    assert_eq!(defaults.code, 0, "{defaults:?}");
    let all = outcomes(&defaults);
    assert!(all.len() >= 25 && all.iter().all(|(_, passed)| *passed), "{all:?}");
    let direct = ("test_files_move_directly".to_owned(), true);
    assert!(all.contains(&direct));

    let rule = "package sojourn.transfer\n\nimport rego.v1\n\nmode := \"relayed\"\n";
    fs::write(policy(site, "transfer.rego"), rule).unwrap();
    let tests = "package sojourn.transfer_test\n\nimport rego.v1\n\nimport data.sojourn.transfer\n\n\
        test_relayed if transfer.mode == \"relayed\"\n\ntest_direct if transfer.mode == \"direct\"\n";
    fs::write(policy(site, "transfer_test.rego"), tests).unwrap();
    let own = site.run(&["policy", "test"]);
    own.says(FAILED, &["1 of", "tests failed"]);
    let all = outcomes(&own);
    assert!(all.contains(&("test_relayed".to_owned(), true)), "{all:?}");
    assert!(all.contains(&("test_direct".to_owned(), false)), "{all:?}");
    assert!(!all.contains(&direct), "the default is not used: {all:?}");

    // What cannot be run has not passed.
    fs::write(policy(site, "transfer.rego"), "package sojourn.transfer\n\nmode :=\n").unwrap();
    site.run(&["policy", "test"]).says(FAILED, &["kept others from running"]);
}

#[test]
fn a_vm_of_before_there_were_groups_is_read_from_the_journal_and_is_of_none() {
    let kept = r#"{"no_delegation":true,"countries":["CH"],"max_price_milli":7}"#;
    let read: Restrictions = serde_json::from_str(kept).unwrap();
    assert_eq!((read.apart, read.max_price_milli), (None, Some(7)));
}
