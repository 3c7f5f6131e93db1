//! When a node says that it is not ready, and why.

use federation_tests::process::{Federation, SOON};

use crate::http::{at, get, watch};

/// Whether a site's readiness is this, and says so with these words.
fn readiness(
    federation: &Federation,
    site: &str,
    status: u16,
    words: &[&str],
) -> Result<(), String> {
    let answer = get(at(&federation[site]), "/readyz?verbose");
    let is_said = words.iter().all(|word| answer.body.contains(word));
    if answer.status == status && is_said { Ok(()) } else { Err(format!("{answer:?}")) }
}

/// Waits until it is so.
fn wait_for(federation: &Federation, site: &str, status: u16, words: &[&str]) {
    federation.wait_for(&format!("{site} answers {status}"), SOON, || {
        readiness(federation, site, status, words)
    });
}

#[test]
fn a_node_is_not_ready_while_its_proxy_is_gone_and_ready_when_that_is_back() {
    let mut federation = Federation::new();
    watch(federation.add("a"));
    federation.add_proxy("a");
    federation["a"].start();
    let all = [
        "[+] journal ok",
        "[+] proxy ok",
        "[+] hosts ok",
        "[+] monitoring ok",
        "[+] peers ok",
        "[+] shutdown ok",
    ];
    wait_for(&federation, "a", 200, &all);
    let proxy = federation["a"].proxy().unwrap();
    proxy.signal(rustix::process::Signal::KILL);
    wait_for(&federation, "a", 503, &["[-] proxy: no connection to apart", "[+] journal ok"]);
    let door = at(&federation["a"]);
    assert_eq!(get(door, "/readyz").body, "not ready\n", "details are for who asks");
    assert_eq!(get(door, "/livez").status, 200, "it lives");
    assert_eq!(get(door, "/metrics").status, 200, "and tells");
    federation.wait_for("the proxy is started again", SOON, || {
        // It may still be on its way out when its connection is gone already.
        federation.revive();
        readiness(&federation, "a", 200, &all)
    });
}

#[test]
fn a_node_is_not_ready_while_a_hosts_folder_is_gone() {
    let mut federation = Federation::new();
    watch(federation.add("a"));
    let a = &federation["a"];
    a.start();
    a.host("a1", 1);
    a.host("a2", 1);
    wait_for(&federation, "a", 200, &["[+] hosts ok"]);
    let (run, away) = (a.folder().join("hosts/a2/run"), a.folder().join("hosts/a2/away"));
    std::fs::rename(&run, &away).unwrap();
    wait_for(&federation, "a", 503, &["[-] hosts: a2: ", "No such file"]);
    std::fs::rename(&away, &run).unwrap();
    wait_for(&federation, "a", 200, &["[+] hosts ok"]);
}

#[test]
fn a_node_is_not_ready_while_its_monitoring_database_does_not_answer() {
    let mut federation = Federation::new();
    watch(federation.add("a"));
    let a = &federation["a"];
    a.start();
    wait_for(&federation, "a", 200, &["[+] monitoring ok"]);
    let book = rusqlite::Connection::open(a.folder().join("monitoring.db")).unwrap();
    book.execute_batch("BEGIN IMMEDIATE").unwrap();
    wait_for(&federation, "a", 503, &["[-] monitoring: ", "[+] journal ok"]);
    book.execute_batch("ROLLBACK").unwrap();
    wait_for(&federation, "a", 200, &["[+] monitoring ok"]);
}
