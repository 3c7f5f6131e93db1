//! As much of HTTP as a test needs, so that it can also say what no client would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use federation_tests::process::{Federation, SOON, Site};

use crate::openmetrics::Exposition;

/// How long an answer may take on a slow machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Its first line and its headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Where a site shows its metrics. Every site has a loopback address of its own.
pub(crate) fn at(site: &Site) -> SocketAddr {
    SocketAddr::new(site.address().ip(), 9464)
}

/// Has a site show its metrics from its next start on.
pub(crate) fn watch(site: &Site) {
    site.configure("metrics", "listen", at(site).to_string());
}

/// Simulated sites that show their metrics, each joined with the next.
pub(crate) fn watched_chain(names: &[&str]) -> Federation {
    let mut federation = Federation::new();
    for name in names {
        let site = federation.add(name);
        watch(site);
        site.start();
    }
    for pair in names.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    federation
}

pub(crate) fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    stream
}

/// Says these bytes, and gives back what is answered until the other end hangs up.
pub(crate) fn say(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(at);
    // The other end may have heard enough before all is said.
    let _ = stream.write_all(bytes);
    hear(stream)
}

/// What is answered until the other end hangs up.
pub(crate) fn hear(mut stream: TcpStream) -> String {
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(heard).unwrap()
}

/// Asks for a page.
pub(crate) fn get(at: SocketAddr, path: &str) -> Answer {
    let said = say(at, format!("GET {path} HTTP/1.1\r\nHost: site\r\n\r\n").as_bytes());
    answer(&said).unwrap_or_else(|| panic!("no answer to {path}: {said:?}"))
}

/// Reads an answer; none if it is none.
pub(crate) fn answer(said: &str) -> Option<Answer> {
    let (head, body) = said.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// The metrics of a site, checked line by line.
pub(crate) fn metrics(site: &Site) -> Exposition {
    let answer = get(at(site), "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(kind), "{}", answer.head);
    Exposition::read(&answer.body)
}

/// Waits until a site's metrics say these, each as `name{label="value"} number`.
pub(crate) fn wait_for(federation: &Federation, site: &str, samples: &[&str]) -> Exposition {
    federation.wait_for(&format!("metrics of {site}"), SOON, || {
        let seen = metrics(&federation[site]);
        let wrong: Vec<String> = samples
            .iter()
            .filter_map(|sample| {
                let (series, value) = sample.rsplit_once(' ').unwrap();
                let found = seen.get(series);
                let is_so = found == Some(value.parse().unwrap());
                (!is_so).then(|| format!("{sample}, and it is {found:?}"))
            })
            .collect();
        if wrong.is_empty() { Ok(seen) } else { Err(wrong.join("\n")) }
    })
}
