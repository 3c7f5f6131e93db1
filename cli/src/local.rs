//! What needs no running node: making a site or a proxy, running them, looking at the machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use model::{PeerName, ProxyUri};
use node::Folder;
use node::config::{Config, Driver, Endpoint, Hypervisor, OfferConfig, TimeConfig, TransferConfig};
use node::doctor::{self, Health};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use transfer_proxy::process;

use crate::args::Format;
use crate::exit::{FAILED, Failure, USAGE};
use crate::output::Output;

/// `site init`.
pub(crate) fn init(
    folder: PathBuf,
    name: &str,
    listen: SocketAddr,
    advertise: Option<String>,
    simulated: bool,
    output: &Output,
) -> Result<(), Failure> {
    let name: PeerName = name.parse().map_err(|e| Failure::new(USAGE, format!("{e}")))?;
    let driver = if simulated { Driver::Simulated } else { Driver::Qemu };
    let proxy_advertise = match &advertise {
        Some(text) => {
            let address = text.parse::<SocketAddr>();
            Some(address.map_err(|_| {
                Failure::new(USAGE, format!("--advertise is ADDRESS:PORT, got {text:?}"))
            })?)
        }
        None => None,
    };
    let config = Config {
        name,
        control: Endpoint { listen, advertise },
        proxy: Endpoint { listen, advertise: proxy_advertise.map(|a| a.to_string()) },
        hypervisor: Hypervisor { driver, ..Hypervisor::default() },
        offer: OfferConfig::default(),
        time: TimeConfig::default(),
        proxies: Vec::new(),
        transfer: TransferConfig::default(),
        metrics: None,
    };
    let path = absolute(&folder)?;
    let identity = Folder::at(&path).init(&config)?;
    let key = identity.site_key();
    let shown = path.display().to_string();
    output.one(
        &json!({ "folder": shown, "name": config.name, "key": key, "fingerprint": key.fingerprint() }),
        || format!(
            "site {} is made in {shown}; its fingerprint is {}\nnext: sojourn site run {shown}",
            config.name,
            key.fingerprint()
        ),
    );
    Ok(())
}

/// `site rotate-key`.
pub(crate) fn rotate_key(folder: &Path, output: &Output) -> Result<(), Failure> {
    let (old, new) = Folder::at(absolute(folder)?).rotate_key()?;
    output.one(&json!({ "old": old, "key": new, "fingerprint": new.fingerprint() }), || {
        format!(
            "the site's fingerprint is now {}, it was {}\n\
             next: start the node; peers learn of it by themselves",
            new.fingerprint(),
            old.fingerprint()
        )
    });
    Ok(())
}

/// `site run`.
pub(crate) async fn run(folder: &Path) -> Result<(), Failure> {
    log_to_stderr();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().map_err(|_| Failure::new(FAILED, "TLS was set up twice"))?;
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut running = node::start(Folder::at(absolute(folder)?)).await?;
    tracing::info!(control = running.control, proxy = running.proxy, "the node serves");
    loop {
        tokio::select! {
            _ = hang_up.recv() => running.reload_policies().await,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            failed = running.failed() => return Err(match failed {
                Some(error) => error.into(),
                None => Failure::new(FAILED, "the node ended by a fault of its own; see the log"),
            }),
        }
    }
    tracing::info!("the node stops; guests go on");
    running.stop().await;
    Ok(())
}

/// `proxy init`.
pub(crate) fn proxy_init(
    folder: &Path,
    config: &process::Config,
    output: &Output,
) -> Result<(), Failure> {
    let listen = config.listen;
    if config.advertise.is_none() && (listen.ip().is_unspecified() || listen.port() == 0) {
        let text = format!("proxies of other sites cannot dial {listen}; name it with --advertise");
        return Err(Failure::new(USAGE, text));
    }
    let data = config.advertise.clone().unwrap_or_else(|| ProxyUri::at(listen));
    if config.control.port() == 0 {
        let text = "--control needs a port that stays: the node comes in there";
        return Err(Failure::new(USAGE, text));
    }
    let path = absolute(folder)?;
    let key = process::init(&path, config)?.site_key();
    let (shown, control) = (path.display().to_string(), config.control);
    output.one(&json!({ "folder": shown, "key": key, "control": control, "data": data }), || {
        format!(
            "the proxy is made in {shown}; its key is {key}\n\
             next: sojourn proxy run {shown}\n\
             and in the node's sojourn.toml, before the node is restarted:\n\n\
             [[proxies]]\n\
             name = \"proxy-1\"       # another one for each\n\
             control = \"{control}\"  # as the node reaches it\n\
             data = \"{data}\"\n\
             key = \"{key}\"\n\
             hosts = []             # those whose files it reaches; without this line, all"
        )
    });
    Ok(())
}

/// `proxy run`.
pub(crate) async fn proxy_run(folder: &Path) -> Result<(), Failure> {
    log_to_stderr();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (config, identity) = process::load(&absolute(folder)?)?;
    let running = process::start(&config, identity).await?;
    tracing::info!(data = %running.uri, control = %running.control, "the proxy serves");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("the proxy stops; transfers go on after its next start");
    running.shut_down().await;
    Ok(())
}

/// `doctor`.
pub(crate) async fn doctor(folder: &Path, output: &Output) -> Result<(), Failure> {
    let findings = doctor::examine(&Folder::at(absolute(folder)?)).await;
    let word = |health| match health {
        Health::Good => "good",
        Health::Note => "note",
        Health::Bad => "bad",
    };
    let bad = findings.iter().filter(|finding| finding.health == Health::Bad).count();
    if output.format() == Format::Json {
        for one in &findings {
            output.line(&json!({ "what": one.what, "health": word(one.health), "text": one.text }));
        }
    } else {
        let rows = findings
            .iter()
            .map(|one| vec![word(one.health).to_owned(), one.what.to_owned(), one.text.clone()]);
        output.table(&["", "WHAT", "FOUND"], rows.collect());
    }
    if bad > 0 {
        return Err(Failure::new(FAILED, format!("{bad} things are in the way")));
    }
    Ok(())
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SOJOURN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        logs.with_target(false).init();
    } else {
        logs.json().init();
    }
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path)?)
}
