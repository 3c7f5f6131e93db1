//! What `sojourn doctor` tells of the addresses that peers are given.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::net::{TcpListener, UdpSocket};

use federation_tests::process::{Federation, Site};
use serde_json::Value;

/// What was found of this, each with how it is.
fn found(site: &Site, what: &str) -> Vec<(String, String)> {
    let text = site.run(&["doctor"]).out;
    let findings = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_it = findings.filter(|finding| finding["what"] == what);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    of_it.map(|one| (text(&one["health"]), text(&one["text"]))).collect()
}

#[test]
fn addresses_that_lead_here_are_found_to_whether_or_not_the_node_runs() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    let address = site.address();
    let good = |over| ("good".to_owned(), format!("{address} leads here ({over})"));
    assert_eq!(found(site, "address"), [good("TCP"), good("UDP")]);
    site.start();
    assert_eq!(found(site, "address"), [good("TCP"), good("UDP")]);
}

#[test]
fn an_address_of_another_site_or_of_somebody_else_is_named() {
    let mut federation = Federation::new();
    let other = federation.add("other").address();
    federation["other"].start();
    federation.add("a");
    let site = &federation["a"];
    site.configure("control", "advertise", other.to_string());
    site.configure("proxy", "advertise", other.to_string());
    for running in [false, true] {
        if running {
            site.start();
        }
        let all = found(site, "address");
        let (health, text) = &all[0];
        assert_eq!(health, "bad", "{all:?}");
        assert!(text.contains("somebody else"), "{all:?}");
    }
}

#[test]
fn an_address_where_nobody_answers_is_told_and_not_called_wrong() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    // Both are bound, and neither answers.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    let nowhere = udp.local_addr().unwrap().to_string();
    site.configure("control", "advertise", nowhere.clone());
    site.configure("proxy", "advertise", nowhere);
    let all = found(site, "address");
    assert_eq!(all.len(), 2, "{all:?}");
    for (health, text) in all {
        assert_eq!(health, "note", "{text}");
        assert!(text.contains("try from outside"), "{text}");
    }
}

#[test]
fn a_site_that_dials_out_is_told_what_that_needs() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    site.configure("proxy", "advertise", "dial-out");
    let all = found(site, "address");
    assert!(all.iter().any(|(_, text)| text.contains("needs one between")), "{all:?}");
}

#[test]
fn addresses_that_mean_every_address_are_no_good_to_peers() {
    let mut federation = Federation::new();
    let site = federation.add("a");
    let everywhere = format!("0.0.0.0:{}", site.address().port());
    site.configure("proxy", "listen", everywhere.clone());
    let all = found(site, "address");
    let bad: Vec<_> = all.iter().filter(|(health, _)| health == "bad").collect();
    assert!(matches!(&bad[..], [(_, text)] if text.contains("proxy.advertise")), "{all:?}");
    site.configure("control", "listen", everywhere);
    let all = found(site, "address");
    assert!(all.iter().any(|(_, text)| text.contains("control.advertise")), "{all:?}");
}
