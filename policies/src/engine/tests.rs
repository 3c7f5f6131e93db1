//! The default policies by their own tests, what sites may write instead, and what they may not.

use std::fs;
use std::time::Instant;

use model::decision::{Candidate, Group, TransferRole};
use model::vm::Restrictions;
use model::{Bytes, Carrier, Descriptor, PeerName, Peering, Resources, Taken, Time};

use super::*;
use crate::{EVALUATION_BUDGET, MAX_POLICY_BYTES, Place, PolicyError, test};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// The engine, or the only thing that is wrong.
fn load(files: &[(&str, &str)]) -> Result<Engine, PolicyError> {
    Engine::load(folder(files).path()).map_err(|Unsound(mut all)| {
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    })
}

/// An engine with one file of the site's own, whose package and import are put before `rules`.
fn with(decision: Decision, rules: &str) -> Engine {
    load(&[(&decision.file(), &source(decision, rules))]).unwrap()
}

fn refusal(decision: Decision, rules: &str) -> PolicyError {
    load(&[(&decision.file(), &source(decision, rules))]).err().expect("a refusal")
}

fn source(decision: Decision, rules: &str) -> String {
    format!("package sojourn.{decision}\nimport rego.v1\n{rules}\n")
}

fn peer(name: &str) -> PeerName {
    name.parse().unwrap()
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "web".parse().unwrap(),
        resources: Resources { cpus: 1, memory: Bytes::mib(128) },
        disks: vec![],
        nics: vec![],
        restrictions: Restrictions::default(),
        monitoring: Default::default(),
    }
}

fn admit() -> Admit {
    Admit {
        peer: Some(peer("beta")),
        descriptor: descriptor(),
        free: Resources { cpus: 4, memory: Bytes::mib(4096) },
        peering: Some(Peering::default()),
        taken: Taken::default(),
        group: Group::default(),
        price_milli: 10,
        country: "DE".to_owned(),
        now: Time(1_800_000_000_000),
    }
}

fn delegate() -> Delegate {
    Delegate {
        peer: Some(peer("beta")),
        peering: Some(Peering::default()),
        to: peer("gamma"),
        to_peering: Peering::default(),
        descriptor: descriptor(),
        hops_left: 3,
    }
}

fn candidate(via: Option<&str>, price_milli: u64) -> Candidate {
    Candidate {
        via: via.map(peer),
        peering: via.map(|_| Peering::default()),
        price_milli,
        class: "standard".to_owned(),
        country: "DE".to_owned(),
        distance: u8::from(via.is_some()),
        runs: true,
        group: 0,
    }
}

fn expose(offers: Vec<Candidate>) -> Expose {
    Expose { peer: peer("beta"), peering: Peering::default(), offers }
}

fn rank(offers: Vec<Candidate>) -> Rank {
    Rank { descriptor: descriptor(), offers }
}

fn transfer() -> Transfer {
    let (descriptor, size) = (descriptor(), Bytes::mib(1));
    let peering = Peering::default();
    Transfer { peer: peer("beta"), peering, descriptor, size, must_meet: false }
}

fn refused(reason: &str) -> Verdict {
    Verdict::Refuse(vec![reason.to_owned()])
}

mod defaults {
    use super::*;

    #[test]
    fn every_default_policy_passes_its_own_tests() {
        let (runs, errors) = test(folder(&[]).path());
        assert!(errors.is_empty(), "{errors:?}");
        let failed: Vec<_> = runs.iter().filter(|run| !run.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert!(runs.len() >= 25, "{} tests ran", runs.len());
    }

    #[test]
    fn a_vm_that_fits_is_admitted_and_one_that_does_not_learns_why() {
        let engine = Engine::defaults();
        assert_eq!(engine.admit(&admit()), Verdict::Allow);
        let full = Admit { free: Resources::default(), country: "US".to_owned(), ..admit() };
        let mut full = Admit { price_milli: 11, ..full };
        full.descriptor.restrictions.countries = vec!["DE".to_owned()];
        full.descriptor.restrictions.max_price_milli = Some(10);
        let Verdict::Refuse(reasons) = engine.admit(&full) else { panic!("it was admitted") };
        assert_eq!(reasons.len(), 4, "{reasons:?}");
    }

    #[test]
    fn a_request_is_delegated_while_hops_are_left_and_the_owner_allows_it() {
        let engine = Engine::defaults();
        assert_eq!(engine.delegate(&delegate()), Verdict::Allow);
        let mut bound = Delegate { hops_left: 0, ..delegate() };
        bound.descriptor.restrictions.no_delegation = true;
        let Verdict::Refuse(reasons) = engine.delegate(&bound) else { panic!("it was passed on") };
        assert_eq!(reasons.len(), 2, "{reasons:?}");
    }

    #[test]
    fn at_most_eight_offers_are_shown() {
        let offers: Vec<_> = (0..10).map(|price| candidate(None, 100 - price)).collect();
        let shown = Engine::defaults().expose(&expose(offers));
        assert_eq!(shown, (2..10).collect::<Vec<_>>());
    }

    #[test]
    fn offers_rank_own_first_then_cheap_then_stored_and_excluded_ones_last() {
        let stored = Candidate { runs: false, ..candidate(None, 0) };
        let offers = vec![
            candidate(Some("dear"), 31),
            candidate(Some("beta"), 20),
            stored,
            candidate(Some("gamma"), 10),
            candidate(None, 30),
        ];
        let mut request = rank(offers);
        request.descriptor.restrictions.max_price_milli = Some(30);
        let ranked = Engine::defaults().rank(&request);
        assert_eq!(ranked.iter().map(|r| r.offer).collect::<Vec<_>>(), [4, 3, 1, 2, 0]);
        assert_eq!(ranked.iter().filter(|r| r.excluded).count(), 1);
        assert!(ranked.iter().all(|r| !r.reasons.is_empty()), "{ranked:?}");
        assert!(ranked[4].reasons[0].starts_with("costs 31, the VM may cost 30"), "{ranked:?}");
    }

    #[test]
    fn files_move_directly() {
        assert_eq!(Engine::defaults().transfer(&transfer()), Route::Direct);
    }

    #[test]
    fn equal_requests_get_equal_decisions() {
        let engine = Engine::defaults();
        let request = rank((0..64).map(|i| candidate(Some("beta"), i % 3)).collect());
        let first = engine.rank(&request);
        assert_eq!(engine.rank(&request), first);
        assert_eq!(Engine::defaults().rank(&request), first);
    }

    #[test]
    fn an_engine_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&Engine::defaults());
    }
}

/// What the design says that a site must be able to express.
mod examples {
    use std::collections::BTreeSet;

    use super::*;

    /// Copies each example, with its tests, to where a site would have it.
    #[test]
    fn every_file_of_the_examples_is_sound_and_passes_its_own_tests() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut decisions = BTreeSet::new();
        let (mut count, mut unsound) = (0, vec![]);
        for entry in fs::read_dir(&examples).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let concern = name.strip_suffix(".rego").expect("nothing else is there");
            if let Some(tested) = concern.strip_suffix("_test") {
                assert!(examples.join(format!("{tested}.rego")).exists(), "{name} tests nothing");
                continue;
            }
            let (decision, _) = concern.split_once('-').expect("its decision, and its concern");
            let decision: Decision = decision.parse().unwrap();
            let text = |file: String| fs::read_to_string(examples.join(file)).unwrap();
            let (rules, tests) = (text(name.clone()), text(format!("{concern}_test.rego")));
            let copy = format!("Copy it to policies/{decision}.rego of the state folder");
            assert!(rules.contains(&copy), "{name} does not say what to do with it");
            let folder = folder(&[(&decision.file(), &rules), (&decision.test_file(), &tests)]);
            if let Err(wrong) = Engine::load(folder.path()) {
                unsound.push(format!("{name}: {wrong}"));
            }
            let (runs, _) = test(folder.path());
            let own = runs.iter().filter(|run| run.place.file == decision.test_file()).count();
            assert!(own > 0, "{name} is not tested");
            (count, _) = (count + own, decisions.insert(decision.name()));
        }
        assert!(unsound.is_empty(), "{unsound:#?}");
        assert!(count >= 60, "{count} tests ran");
        assert_eq!(decisions.len(), Decision::ALL.len(), "{decisions:?}");
    }

    #[test]
    fn a_quota_per_peer() {
        let engine = with(
            Decision::Admit,
            r#"
            quota := {"beta": 2}
            refuse contains "quota used up" if {
                input.peer != null
                input.taken.vms >= object.get(quota, input.peer, 1)
            }"#,
        );
        let holding = |vms| Admit { taken: Taken { vms, ..Taken::default() }, ..admit() };
        assert_eq!(engine.admit(&holding(1)), Verdict::Allow);
        assert_eq!(engine.admit(&holding(2)), refused("quota used up"));
        let other = Admit { peer: Some(peer("gamma")), ..holding(1) };
        assert_eq!(engine.admit(&other), refused("quota used up"));
        assert_eq!(engine.admit(&Admit { peer: None, ..holding(9) }), Verdict::Allow);
    }

    #[test]
    fn a_price_floor() {
        let engine = with(
            Decision::Admit,
            r#"
            refuse contains "not for so little" if {
                input.descriptor.restrictions.max_price_milli != null
                input.descriptor.restrictions.max_price_milli < 50
            }"#,
        );
        assert_eq!(engine.admit(&admit()), Verdict::Allow);
        let mut poor = admit();
        poor.descriptor.restrictions.max_price_milli = Some(49);
        assert_eq!(engine.admit(&poor), refused("not for so little"));
    }

    #[test]
    fn only_peers_with_a_contract() {
        let engine = with(
            Decision::Admit,
            r#"refuse contains "no contract" if { input.peer != null; input.peering.contract == null }"#,
        );
        assert_eq!(engine.admit(&admit()), refused("no contract"));
        let peering = Peering { contract: Some("2026-17".to_owned()), ..Peering::default() };
        let agreed = Admit { peering: Some(peering), ..admit() };
        assert_eq!(engine.admit(&agreed), Verdict::Allow);
        assert_eq!(engine.admit(&Admit { peer: None, ..admit() }), Verdict::Allow);
    }

    #[test]
    fn only_certain_guests() {
        let engine = with(
            Decision::Admit,
            r#"refuse contains "unknown guest" if not regex.match("^web(-[0-9]+)?$", input.descriptor.name)"#,
        );
        assert_eq!(engine.admit(&admit()), Verdict::Allow);
        let mut other = admit();
        other.descriptor.name = "miner".parse().unwrap();
        assert_eq!(engine.admit(&other), refused("unknown guest"));
    }

    #[test]
    fn never_an_intermediary() {
        let engine = with(
            Decision::Delegate,
            r#"refuse contains "this site passes nothing on" if input.peer != null"#,
        );
        assert_eq!(engine.delegate(&delegate()), refused("this site passes nothing on"));
        assert_eq!(engine.delegate(&Delegate { peer: None, ..delegate() }), Verdict::Allow);
    }

    #[test]
    fn delegation_within_one_domain_and_at_most_n_hops() {
        let engine = with(
            Decision::Delegate,
            r#"
            refuse contains "another domain" if not input.to in {"gamma", "delta"}
            refuse contains "too far" if input.hops_left > 3"#,
        );
        assert_eq!(engine.delegate(&delegate()), Verdict::Allow);
        let away = Delegate { to: peer("beta"), ..delegate() };
        assert_eq!(engine.delegate(&away), refused("another domain"));
        assert_eq!(engine.delegate(&Delegate { hops_left: 4, ..delegate() }), refused("too far"));
    }

    #[test]
    fn only_local_offers_only_preferred_partners_or_at_most_n_are_shown() {
        let offers = vec![
            candidate(None, 1),
            candidate(Some("gamma"), 2),
            candidate(Some("delta"), 3),
            candidate(None, 4),
        ];
        let rules = [
            (r#"hide contains i if { some i, o in input.offers; o.via != null }"#, vec![0, 3]),
            (
                r#"hide contains i if { some i, o in input.offers; not o.via in {null, "delta"} }"#,
                vec![0, 2, 3],
            ),
            (r#"hide contains i if { some i, _ in input.offers; i >= 1 }"#, vec![0]),
            (r#"hide := set()"#, vec![0, 1, 2, 3]),
        ];
        for (rule, shown) in rules {
            let engine = with(Decision::Expose, rule);
            assert_eq!(engine.expose(&expose(offers.clone())), shown, "{rule}");
        }
    }

    #[test]
    fn a_ranking_by_partner_and_capacity_class() {
        let engine = with(
            Decision::Rank,
            r#"
            preferred := {"gamma": 100}
            score[i] := value if {
                some i, o in input.offers
                value := object.get(preferred, o.via, 0) - o.price_milli
            }
            reasons contains [i, "partner"] if { some i, o in input.offers; preferred[o.via] }
            exclude contains [i, "wrong class"] if {
                some i, o in input.offers
                o.class != "standard"
            }"#,
        );
        let small = Candidate { class: "small".to_owned(), ..candidate(Some("gamma"), 1) };
        let offers = vec![small, candidate(Some("beta"), 1), candidate(Some("gamma"), 90)];
        let ranked = engine.rank(&rank(offers));
        let found: Vec<_> =
            ranked.iter().map(|r| (r.offer, r.score, r.excluded, r.reasons.join(","))).collect();
        let text = str::to_owned;
        assert_eq!(
            found,
            [
                (2, 10.0, false, text("partner")),
                (1, -1.0, false, text("")),
                (0, 99.0, true, text("wrong class")),
            ]
        );
    }

    #[test]
    fn relayed_transfers_for_small_vms() {
        let engine = with(
            Decision::Transfer,
            r#"
            default mode := "direct"
            mode := "relayed" if input.size < 2097152"#,
        );
        assert_eq!(engine.transfer(&transfer()), Route::Relayed);
        let large = Transfer { size: Bytes::mib(2), ..transfer() };
        assert_eq!(engine.transfer(&large), Route::Direct);
    }

    #[test]
    fn what_a_transfer_may_take_by_peer_role_and_haste() {
        let engine = with(
            Decision::Share,
            r#"
            default carrier := "any"
            carrier := "tls" if input.peer == "beta"
            default rate := 0
            rate := 1000000 if input.role == "relay"
            default weight := 1
            weight := 8 if input.urgent"#,
        );
        let [full, _] = samples::share();
        let beta = Share { peer: Some(peer("beta")), urgent: true, ..full.clone() };
        let tls = Some(Carrier::Tls);
        assert_eq!(engine.share(&beta), Granted { carrier: tls, rate: None, weight: 8 });
        let relay = Share { role: TransferRole::Relay, urgent: false, ..full };
        let limited = Granted { rate: Some(Bytes(1_000_000)), ..Granted::default() };
        assert_eq!(engine.share(&relay), limited);
        for wrong in [
            "carrier := \"udp\"\nrate := 0\nweight := 1",
            "carrier := \"any\"\nrate := -1\nweight := 1",
            "carrier := \"any\"\nrate := 0\nweight := 0",
        ] {
            let refused = refusal(Decision::Share, wrong);
            assert!(matches!(refused, PolicyError::Sample { .. }), "{refused}");
        }
    }
}

mod loading {
    use super::*;

    #[test]
    fn a_file_of_the_site_replaces_one_default_and_leaves_the_others() {
        let closed = source(Decision::Admit, r#"refuse contains "closed""#);
        let engine = load(&[("admit.rego", &closed), ("README.md", "not a policy")]).unwrap();
        assert_eq!(engine.admit(&admit()), refused("closed"));
        assert_eq!(engine.delegate(&delegate()), Verdict::Allow);
        assert_eq!(load(&[]).unwrap().admit(&admit()), Verdict::Allow);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_not_the_defaults() {
        let folder = folder(&[]);
        let missing = Engine::load(&folder.path().join("policies")).err().unwrap();
        assert!(matches!(missing.0[..], [PolicyError::Read { .. }]), "{missing}");
    }

    #[test]
    fn an_unknown_file_is_an_error_that_names_the_nearest_known_one() {
        for (name, near) in [
            ("admin.rego", "admit.rego"),
            ("Rank.rego", "rank.rego"),
            ("transfers.rego", "transfer.rego"),
            ("delegate-test.rego", "delegate_test.rego"),
        ] {
            let error = load(&[(name, "")]).err().unwrap();
            let text = format!("{name} is no policy of a site; did you mean {near}?");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_syntax_error_is_told_with_file_line_and_column() {
        let error = refusal(Decision::Admit, "refuse contains reason if {\n  reason := := 1\n}");
        let PolicyError::Invalid { place, problem } = &error else { panic!("{error}") };
        let wanted = Place { file: "admit.rego".to_owned(), line: 4, column: 13 };
        assert_eq!(*place, wanted, "{error}");
        assert!(!problem.is_empty() && !problem.contains('\n'), "{error}");
        assert!(error.to_string().starts_with("admit.rego:4:13: "), "{error}");
    }

    #[test]
    fn a_function_that_does_not_exist_is_found_even_where_no_sample_comes() {
        let rule = "refuse contains \"x\" if {\n  input.peer == \"nobody\"\n  frobnicate(1)\n}";
        let error = refusal(Decision::Admit, rule);
        assert!(
            matches!(error, PolicyError::Invalid { place: Place { line: 5, .. }, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("frobnicate"), "{error}");
    }

    #[test]
    fn a_variable_that_is_not_defined_is_found_with_its_place() {
        let error = refusal(Decision::Admit, "refuse contains reason if reasn := \"x\"");
        assert!(
            matches!(error, PolicyError::Invalid { place: Place { line: 3, .. }, .. }),
            "{error}"
        );
    }

    #[test]
    fn rules_in_another_package_or_under_another_name_are_refused() {
        let error =
            load(&[("admit.rego", "package sojourn.admitt\nimport rego.v1\nrefuse := set()")]);
        let error = error.err().unwrap();
        assert!(matches!(error, PolicyError::Package { .. }), "{error}");
        let error = refusal(Decision::Admit, "refuses contains \"x\"");
        assert!(matches!(error, PolicyError::Missing { rule: "refuse", .. }), "{error}");
        let error = refusal(Decision::Rank, "score := {}\nreasons := set()");
        assert!(matches!(error, PolicyError::Missing { rule: "exclude", .. }), "{error}");
    }

    #[test]
    fn a_rule_of_the_wrong_type_is_refused() {
        let score = "score[i] := 1 if some i, _ in input.offers\n";
        let none = "reasons := set()\nexclude := set()\n";
        let rank = |reasons: &str, exclude: &str| {
            (Decision::Rank, format!("{score}reasons := {reasons}\nexclude := {exclude}"))
        };
        let wrong = [
            (Decision::Admit, "refuse := true".to_owned()),
            (Decision::Admit, r#"refuse := "no""#.to_owned()),
            (Decision::Admit, "refuse contains 7".to_owned()),
            (Decision::Admit, r#"refuse := {"x"} if input.peer == "nobody""#.to_owned()),
            (Decision::Delegate, "refuse := false".to_owned()),
            (Decision::Expose, "hide := [0]".to_owned()),
            (Decision::Expose, r#"hide contains "0""#.to_owned()),
            (Decision::Expose, "hide contains 1000".to_owned()),
            (Decision::Expose, "hide contains -1".to_owned()),
            (Decision::Rank, format!("score := 1\n{none}")),
            (Decision::Rank, format!("score := {{}}\n{none}")),
            (Decision::Rank, format!("score[i] := \"1\" if some i, _ in input.offers\n{none}")),
            rank("set()", "{0}"),
            rank("set()", r#"{[1000, "x"]}"#),
            rank("set()", r#"{["0", "x"]}"#),
            rank("set()", r#"{0: "x"}"#),
            rank("{[0, 1]}", "set()"),
            rank(r#"{[0, "x", "y"]}"#, "set()"),
            (Decision::Transfer, r#"mode := "fast""#.to_owned()),
            (Decision::Transfer, r#"mode := "direct" if input.peer == "nobody""#.to_owned()),
        ];
        for (decision, rules) in wrong {
            let error = refusal(decision, &rules);
            let failure = Failure::Result { rule: "", wanted: "", got: String::new() };
            let PolicyError::Sample { source, .. } = error else { panic!("{rules}: {error}") };
            let same_kind = std::mem::discriminant(&source) == std::mem::discriminant(&failure);
            assert!(same_kind, "{rules}: {source}");
        }
    }

    #[test]
    fn a_policy_that_never_excludes_anything_is_sound() {
        let rules = "score[i] := 1 if some i, _ in input.offers
            reasons := set()
            exclude := set()";
        let engine = with(Decision::Rank, rules);
        let ranked = engine.rank(&rank(vec![candidate(None, 2), candidate(None, 1)]));
        assert_eq!(ranked.iter().map(|r| r.offer).collect::<Vec<_>>(), [0, 1], "a stable order");
    }

    #[test]
    fn a_runaway_rule_is_stopped_by_the_budget() {
        // 20 to the power of 8 combinations: hours.
        let rule = r#"refuse contains "x" if {
            n := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
            some a in n; some b in n; some c in n; some d in n; some e in n; some f in n
            some g in n; some h in n
            a + b + c + d + e + f + g + h == 0
        }"#;
        let began = Instant::now();
        let error = refusal(Decision::Admit, rule);
        let PolicyError::Sample { source: Failure::Budget("refuse"), .. } = error else {
            panic!("{error:?}")
        };
        assert!(began.elapsed() < 40 * EVALUATION_BUDGET, "stopped after {:?}", began.elapsed());
    }

    #[test]
    fn functions_without_a_bound_or_with_chance_are_refused() {
        for call in ["rand.intn(\"x\", 2) == 1", "count(numbers.range(1, 1000000000)) == 1"] {
            let rule =
                format!("refuse contains \"x\" if {{\n input.peer == \"nobody\"\n {call}\n}}");
            let error = refusal(Decision::Admit, &rule);
            assert!(matches!(error, PolicyError::Forbidden { .. }), "{error}");
        }
        for missing in ["time.now_ns()", "http.send({})", "opa.runtime()", "uuid.rfc4122(\"x\")"] {
            let rule = format!("refuse contains \"x\" if {missing} == 1");
            let error = refusal(Decision::Admit, &rule);
            assert!(
                matches!(error, PolicyError::Invalid { place: Place { line: 3, .. }, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn brackets_that_would_take_the_parser_for_ever_are_refused_at_once() {
        let nested = |open: &str, close: &str, levels| {
            let rule = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            format!("refuse contains \"x\" if {{\n input.peer == {rule}\n}}")
        };
        for (open, close) in [("[", "]"), ("{", "}"), ("{\"a\": ", "}"), ("[x | x := ", "]")] {
            let error = refusal(Decision::Admit, &nested(open, close, 64));
            assert!(
                matches!(error, PolicyError::Invalid { place: Place { line: 4, .. }, .. }),
                "{error}"
            );
            assert!(error.to_string().contains("within one another"), "{error}");
        }
        let sound = [
            nested("[", "]", 9),
            "# [[[[[[[[[[[[\nrefuse contains \"[[[[[[\\\"[[[[[[\" if input.peer == `{{{{{{{{{{{{`"
                .to_owned(),
        ];
        for rule in sound {
            let source = format!("package sojourn.admit\nimport rego.v1\n{rule}");
            assert!(load(&[("admit.rego", &source)]).is_ok(), "{rule}");
        }
    }

    #[test]
    fn a_policy_of_too_many_bytes_is_refused() {
        let error = refusal(Decision::Admit, &"# more\n".repeat(MAX_POLICY_BYTES / 7 + 1));
        assert!(matches!(error, PolicyError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn the_sites_own_tests_run_at_the_start() {
        let rules = source(Decision::Transfer, r#"mode := "relayed""#);
        let test = |body: &str| {
            let test = format!(
                "package sojourn.transfer_test\nimport rego.v1\nimport data.sojourn.transfer\n{body}"
            );
            load(&[("transfer.rego", &rules), ("transfer_test.rego", &test)])
        };
        assert!(test("test_relayed if transfer.mode == \"relayed\"").is_ok());
        let error = test("test_direct if transfer.mode == \"direct\"").err().unwrap();
        assert_eq!(error.to_string(), "transfer_test.rego:4:1: test_direct does not hold");
        let error = test("tests_nothing := true").err().unwrap();
        assert!(matches!(error, PolicyError::NoTest { .. }), "{error}");
    }
}

/// Policies that pass every sample and fail for a request all the same.
mod failing {
    use super::*;

    /// A condition that only the requests of these tests meet, and that then divides by zero.
    const FAULT: &str =
        "input.descriptor.name == \"web\"; 1 / (input.descriptor.resources.cpus - 1) > 0";

    #[test]
    fn a_failing_admission_or_delegation_is_a_refusal_that_tells_nothing() {
        let rule = format!("refuse contains \"x\" if {{ {FAULT} }}");
        let engine = with(Decision::Admit, &rule);
        assert_eq!(engine.admit(&admit()), refused("policy failed: admit gave no decision"));
        let engine = with(Decision::Delegate, &rule);
        let verdict = engine.delegate(&delegate());
        assert_eq!(verdict, refused("policy failed: delegate gave no decision"));
    }

    #[test]
    fn a_failing_ranking_excludes_every_offer() {
        let rules = format!(
            "score[i] := 1 if some i, _ in input.offers
            reasons := set()
            exclude contains [i, \"x\"] if {{ some i, _ in input.offers; {FAULT} }}"
        );
        let engine = with(Decision::Rank, &rules);
        let ranked = engine.rank(&rank(vec![candidate(None, 1), candidate(None, 2)]));
        assert_eq!(ranked.len(), 2);
        for (at, offer) in ranked.iter().enumerate() {
            assert_eq!((offer.offer, offer.excluded), (at, true));
            assert_eq!(offer.reasons, ["policy failed: rank gave no decision"]);
        }
    }

    #[test]
    fn a_failing_exposure_shows_nothing() {
        let rule = "hide contains i if { some i, o in input.offers; 1 / (o.price_milli - 77) > 2 }";
        let engine = with(Decision::Expose, rule);
        let offers = vec![candidate(None, 1), candidate(None, 77)];
        assert_eq!(engine.expose(&expose(offers)), Vec::<usize>::new());
    }

    #[test]
    fn a_failing_transfer_rule_relays() {
        let rules = format!("mode := \"direct\" if not fault\nfault if {{ {FAULT} }}");
        assert_eq!(with(Decision::Transfer, &rules).transfer(&transfer()), Route::Relayed);
    }

    #[test]
    fn a_runaway_request_is_refused_in_time() {
        let rule = "refuse contains \"x\" if {
            input.descriptor.name == \"web\"
            n := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
            some a in n; some b in n; some c in n; some d in n; some e in n; some f in n
            some g in n; some h in n
            a + b + c + d + e + f + g + h == 0
        }";
        let engine = with(Decision::Admit, rule);
        assert_eq!(engine.admit(&admit()), refused("policy failed: admit took too long"));
    }

    #[test]
    fn one_failure_leaves_nothing_behind_for_the_next_request() {
        let engine = with(Decision::Admit, &format!("refuse contains \"x\" if {{ {FAULT} }}"));
        assert!(!engine.admit(&admit()).is_allowed());
        let mut larger = admit();
        larger.descriptor.resources.cpus = 3;
        assert_eq!(engine.admit(&larger), refused("x"));
        larger.descriptor.name = "db".parse().unwrap();
        assert_eq!(engine.admit(&larger), Verdict::Allow);
    }
}
