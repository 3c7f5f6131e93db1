//! Who is let in, and what is said to whoever asks for something else.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use federation_tests::process::{Federation, Outcome, SOON, Site, sojourn};

use crate::http::{answer, at, connect, get, hear, metrics, say, watch, watched_chain};

/// Runs the node of a site in the foreground; it is expected to end at once.
fn run_node(site: &Site) -> Outcome {
    let mut run = Command::new(sojourn());
    let output = run.args(["site", "run"]).arg(site.folder()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

#[test]
fn nothing_is_served_unless_an_address_is_given() {
    let federation = Federation::chain(&["a"]);
    let refused = TcpStream::connect(at(&federation["a"])).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!federation["a"].run(&["site", "show", "--config"]).out.contains("metrics."));
}

#[test]
fn an_address_that_is_none_is_taken_or_is_not_this_machines_is_named() {
    let mut federation = Federation::new();
    let a = federation.add("a");
    let set = |listen: &str| a.configure("metrics", "listen", listen);
    set("everywhere");
    run_node(a).says(1, &["sojourn.toml", "listen = \"everywhere\"", "address"]);
    set("192.0.2.7:9464");
    run_node(a).says(1, &["192.0.2.7:9464", "for metrics", "cannot listen"]);
    let taken = TcpListener::bind(at(a)).unwrap();
    watch(a);
    run_node(a).says(1, &[&at(a).to_string(), "for metrics", "another node"]);
    drop(taken);
    a.configure("metrics", "kpi", "web.users");
    run_node(a).says(1, &["unknown field `kpi`", "did you mean `kpis`?"]);
}

#[test]
fn an_address_that_others_reach_is_warned_of() {
    let mut federation = Federation::new();
    let a = federation.add("a");
    a.configure("metrics", "listen", "0.0.0.0:0");
    a.start();
    let warned = "metrics are not on loopback";
    assert!(a.log_text().contains(warned), "{}", a.log_text());
    a.stop();
    watch(a);
    a.start();
    assert_eq!(a.log_text().matches(warned).count(), 1, "loopback is not warned of");
}

#[test]
fn only_reading_is_served_and_only_three_pages() {
    let federation = watched_chain(&["a"]);
    let door = at(&federation["a"]);
    let status = |request: &str| {
        let said = say(door, request.as_bytes());
        answer(&said).unwrap_or_else(|| panic!("{request:?}: {said:?}"))
    };
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FETCH"] {
        let refused = status(&format!("{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(refused.status, 405, "{method}");
        assert!(refused.head.contains("allow: get, head"), "{refused:?}");
    }
    for path in ["/", "/metrics/", "/metric", "/../metrics", "//metrics", "/debug", "*"] {
        let found = status(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).status;
        assert!([400, 404].contains(&found), "{path}: {found}");
    }
    for (path, said) in [("/livez", "live\n"), ("/readyz", "ready\n")] {
        assert_eq!((get(door, path).status, get(door, path).body.as_str()), (200, said));
        let head = status(&format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    }
    // One request is answered on a connection, and the next one is not.
    let twice = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    assert_eq!(say(door, twice.as_bytes()).matches("HTTP/1.1 200").count(), 1);
    // A body is not waited for.
    let body = "GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\nx";
    assert_eq!(status(body).status, 413);
    let chunks = "GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n";
    assert_eq!(status(chunks).status, 413);
}

#[test]
fn nonsense_long_lines_and_slow_ones_end_in_time_and_cost_nothing_else() {
    let federation = watched_chain(&["a"]);
    let door = at(&federation["a"]);
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    for (what, request) in [
        ("a long path", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20))),
        ("a long header", format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))),
        ("many headers", format!("GET /livez HTTP/1.1\r\n{many}\r\n")),
        ("no HTTP", "\u{16}\u{3}\u{1}hello\r\n\r\n".to_owned()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ] {
        let said = say(door, request.as_bytes());
        let status = answer(&said).map(|answer| answer.status);
        let is_refused = status.is_none_or(|status| (400..600).contains(&status));
        assert!(is_refused, "{what}: {said:?}");
    }
    let begun = Instant::now();
    let mut slow = connect(door);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
    assert_eq!(get(door, "/livez").status, 200, "others are answered meanwhile");
    let said = hear(slow);
    assert!(answer(&said).is_none_or(|answer| answer.status == 408), "{said:?}");
    assert!(begun.elapsed() > Duration::from_secs(3), "it was given some time");
    metrics(&federation["a"]);
}

#[test]
fn two_hundred_idle_connections_keep_nobody_out() {
    let federation = watched_chain(&["a"]);
    let door: SocketAddr = at(&federation["a"]);
    let idle: Vec<TcpStream> = (0..200).map(|_| connect(door)).collect();
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(get(door, "/readyz").status, 200);
        metrics(&federation["a"]);
    }
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
    // They are not kept either.
    for one in idle {
        assert_eq!(hear(one), "");
    }
    assert_eq!(get(door, "/livez").status, 200);
}
