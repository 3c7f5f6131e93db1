//! What each command does: ask the node, print what it says.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use indicatif::{ProgressBar, ProgressStyle};
use proto::admin as api;
use serde_json::json;

use crate::args::{Args, Format, Host, Move, Noun, Offer, Op, Policy, Proxy, Site, Usage, Vm};
use crate::client::{Client, connect};
use crate::exit::{FAILED, Failure, REFUSED, TIMED_OUT, USAGE};
use crate::local;
use crate::output::{
    self, Output, bytes, dash, host_value, operation_value, place, site_value, time, vm_value,
    vm_words,
};

/// Runs what was typed.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let output = Output::new(args.output, args.quiet);
    let folder = args.site;
    match args.noun {
        Noun::Site(Site::Init { folder: at, name, listen, advertise, simulated }) => {
            local::init(at.unwrap_or(folder), &name, listen, advertise, simulated, &output)
        }
        Noun::Site(Site::RotateKey) => local::rotate_key(&folder, &output),
        Noun::Site(Site::Run { folder: at }) => local::run(&at.unwrap_or(folder)).await,
        Noun::Proxy(Proxy::Init { folder, listen, advertise, control, node }) => {
            let config = transfer_proxy::process::Config { listen, advertise, control, node };
            local::proxy_init(&folder, &config, &output)
        }
        Noun::Proxy(Proxy::Run { folder }) => local::proxy_run(&folder).await,
        Noun::Doctor => local::doctor(&folder, &output).await,
        Noun::Policy(Policy::Check) => crate::policy::check(&folder, &output),
        Noun::Policy(Policy::Test) => crate::policy::test(&folder, &output),
        Noun::Policy(Policy::Explain { decision, input }) => {
            crate::policy::explain(&folder, decision, input.as_deref(), &output)
        }
        Noun::Usage(Usage::Verify { file }) => crate::usage::verify(&file, &output),
        Noun::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "sojourn", &mut script);
            Ok(output.raw(&script)?)
        }
        Noun::Version => {
            let version = env!("CARGO_PKG_VERSION");
            output.one(&json!({ "version": version }), || format!("sojourn {version}"));
            Ok(())
        }
        remote => {
            let mut node = connect(&folder).await?;
            ask_node(remote, &mut node, &output).await
        }
    }
}

async fn ask_node(noun: Noun, node: &mut Client, output: &Output) -> Result<(), Failure> {
    match noun {
        Noun::Site(Site::Show { config }) => show_site(config, node, output).await,
        Noun::Site(Site::Unfence { vm, yes }) => {
            if !yes {
                let text = "VMs would run here again; say with --yes that they run nowhere else";
                return Err(Failure::new(USAGE, text));
            }
            let (value, text) = match &vm {
                Some(vm) => {
                    (json!({ "vm": vm, "held": false }), format!("{vm} is not held any more"))
                }
                None => (json!({ "fenced": false }), "no VM is held any more".to_owned()),
            };
            node.unfence(api::UnfenceRequest { vm: vm.unwrap_or_default() }).await?;
            output.one(&value, || text);
            Ok(())
        }
        Noun::Site(Site::Evacuate { reason, deadline, detach }) => {
            evacuate(reason, deadline, detach, node, output).await
        }
        Noun::Peer(verb) => crate::peer::peer(verb, node, output).await,
        Noun::Host(verb) => host(verb, node, output).await,
        Noun::Vm(verb) => vm(verb, node, output).await,
        Noun::Op(verb) => op(verb, node, output).await,
        Noun::Usage(Usage::Export(ask)) => crate::usage::export(ask, node, output).await,
        Noun::Offer(Offer::List) => {
            let offers = node.list_offers(api::Nothing {}).await?.into_inner().offers;
            output.list(
                &offers,
                |o| {
                    json!({ "vm": o.vm, "asker": o.asker, "at": o.at,
                            "expires_unix_ms": o.expires_unix_ms, "price_milli": o.price_milli })
                },
                &["VM", "ASKER", "AT", "EXPIRES"],
                |o| vec![o.vm.clone(), o.asker.clone(), o.at.clone(), time(o.expires_unix_ms)],
            );
            Ok(())
        }
        Noun::Contract(verb) => crate::contract::run(verb, node, output).await,
        _ => unreachable!("handled without a node"),
    }
}

async fn show_site(config: bool, node: &mut Client, output: &Output) -> Result<(), Failure> {
    let site = node.get_site(api::Nothing {}).await?.into_inner();
    if config && output.format() == Format::Table {
        let row = |s: &api::Setting| vec![s.key.clone(), s.value.clone(), s.whence.clone()];
        output.table(&["SETTING", "VALUE", "WHENCE"], site.settings.iter().map(row).collect());
        return Ok(());
    }
    output.one(&site_value(&site, config), || {
        format!(
            "name         {}\nfingerprint  {}\npeers        {} (TCP)\ntransfers    {} (UDP, TCP)\n\
             hypervisor   {}\njournal      {} rows\nversion      {}",
            site.name,
            site.fingerprint,
            site.control_address,
            site.proxy_address,
            site.hypervisor,
            site.journal,
            site.version
        )
    });
    Ok(())
}

async fn evacuate(
    reason: String,
    deadline_seconds: u64,
    detach: bool,
    node: &mut Client,
    output: &Output,
) -> Result<(), Failure> {
    let vms = node.list_vms(api::Nothing {}).await?.into_inner().vms;
    let mut operations = Vec::new();
    for vm in vms.iter().filter(|vm| !vm.primary && vm.place == "here") {
        let ask = api::EvictRequest { vm: vm.id.clone(), reason: reason.clone(), deadline_seconds };
        operations.push(node.evict_vm(ask).await?.into_inner());
    }
    follow_all(operations, detach, node, output).await
}

async fn host(verb: Host, node: &mut Client, output: &Output) -> Result<(), Failure> {
    match verb {
        Host::List => {
            let hosts = node.list_hosts(api::Nothing {}).await?.into_inner().hosts;
            let heading = ["NAME", "CPUS", "MEMORY", "VMS", "STATE"];
            output.list(&hosts, host_value, &heading, |host| {
                vec![
                    host.name.clone(),
                    format!("{}/{}", host.cpus_used, host.cpus),
                    format!("{}/{}", bytes(host.memory_used_bytes), bytes(host.memory_bytes)),
                    host.vms.to_string(),
                    if host.draining { "draining" } else { "ready" }.to_owned(),
                ]
            });
        }
        Host::Add { host, cpus, memory } => {
            let ask = api::AddHostRequest { name: host, cpus, memory_bytes: memory.0 };
            let host = node.add_host(ask).await?.into_inner();
            output.one(&host_value(&host), || {
                let memory = bytes(host.memory_bytes);
                format!("host {}: {} CPUs, {memory}; {}", host.name, host.cpus, host.profile)
            });
        }
        Host::Drain { host, undo, detach } => {
            let ask = api::DrainHostRequest { name: host.clone(), undo };
            let operations = node.drain_host(ask).await?.into_inner().operations;
            if operations.is_empty() {
                let state = if undo { "takes VMs again" } else { "is empty and takes no VM" };
                output.one(&json!({ "host": host, "draining": !undo }), || {
                    format!("host {host} {state}")
                });
                return Ok(());
            }
            follow_all(operations, detach, node, output).await?;
        }
        Host::Remove { host } => {
            node.remove_host(api::Name { name: host.clone() }).await?;
            output.one(&json!({ "removed": host }), || format!("host {host} is forgotten"));
        }
    }
    Ok(())
}

async fn vm(verb: Vm, node: &mut Client, output: &Output) -> Result<(), Failure> {
    match verb {
        Vm::Import { file, name } => {
            let path = utf8(std::path::absolute(file)?)?;
            let ask = api::ImportRequest { path, name: name.unwrap_or_default() };
            let vm = node.import_vm(ask).await?.into_inner();
            for warning in &vm.warnings {
                output.remark(&format!("warning: {warning}"));
            }
            output.one(&vm_value(&vm), || {
                format!("{} is in the library; its id is {}", vm.name, vm.id)
            });
        }
        Vm::Export { vm, file } => {
            let path = utf8(std::path::absolute(file)?)?;
            node.export_vm(api::ExportRequest { vm: vm.clone(), path: path.clone() }).await?;
            output.one(&json!({ "vm": vm, "file": path }), || format!("{vm} is written to {path}"));
        }
        Vm::Place(ask) => return relocate(ask, true, node, output).await,
        Vm::Migrate(ask) => return relocate(ask, false, node, output).await,
        Vm::Evict { vm, reason, deadline, detach } => {
            let ask = api::EvictRequest { vm, reason, deadline_seconds: deadline };
            let operation = node.evict_vm(ask).await?.into_inner();
            return follow_all(vec![operation], detach, node, output).await;
        }
        Vm::List => {
            let vms = node.list_vms(api::Nothing {}).await?.into_inner().vms;
            let heading = ["NAME", "STATE", "PLACE", "FOR", "EPOCH", "ID"];
            output.list(&vms, vm_value, &heading, |vm| {
                let whose = if vm.primary { "this site" } else { &vm.delegator };
                vec![
                    vm.name.clone(),
                    vm.state.clone(),
                    place(vm),
                    whose.to_owned(),
                    vm.epoch.to_string(),
                    vm.id.clone(),
                ]
            });
        }
        Vm::Show { vm, monitoring: true } => {
            let found = node.get_monitoring(api::Name { name: vm }).await?.into_inner();
            let value = json!({ "section": found.section, "revision": found.revision });
            output.one(&value, || found.section);
        }
        Vm::Set { vm, monitoring } => {
            let monitoring = section(&monitoring)?;
            let vm = node.set_vm(api::SetRequest { vm, monitoring }).await?.into_inner();
            for warning in &vm.warnings {
                output.remark(&format!("warning: {warning}"));
            }
            output.one(&vm_value(&vm), || {
                format!("{} is monitored so from now on, where it is", vm.name)
            });
        }
        Vm::Show { vm, monitoring: false } => {
            let vm = node.get_vm(api::Name { name: vm }).await?.into_inner();
            output.one(&vm_value(&vm), || vm_words(&vm));
        }
        Vm::Events { vm } => {
            let events = node.list_events(api::Name { name: vm }).await?.into_inner().events;
            output.list(&events, output::event_value, &["TIME", "EVENT"], |event| {
                vec![time(event.unix_ms), event.text.clone()]
            });
        }
        Vm::Start { vm } => return control(vm, "start", node, output).await,
        Vm::Stop { vm } => return control(vm, "stop", node, output).await,
        Vm::Pause { vm } => return control(vm, "pause", node, output).await,
        Vm::Resume { vm } => return control(vm, "resume", node, output).await,
        Vm::Hibernate { vm } => return control(vm, "hibernate", node, output).await,
        Vm::Destroy { vm, yes } => {
            if !yes {
                let text =
                    format!("{vm} would be deleted for good, with its files; say so with --yes");
                return Err(Failure::new(USAGE, text));
            }
            return control(vm, "destroy", node, output).await;
        }
        Vm::Adopt { vm, statement } => {
            let vm = node.adopt_vm(api::AdoptRequest { vm, statement }).await?.into_inner();
            output.one(&vm_value(&vm), || {
                format!(
                    "{} is this site's, {}; `sojourn vm start` or `place` goes on",
                    vm.name, vm.state
                )
            });
        }
        Vm::Reclaim { vm, at } => {
            let vm = node.reclaim_vm(api::ReclaimRequest { vm, peer: at }).await?.into_inner();
            output.one(&vm_value(&vm), || format!("{} answers for {} now", vm.delegate, vm.name));
        }
        Vm::Kpi(ask) => crate::kpi::run(ask, node, output).await?,
        Vm::Console { vm, follow } => {
            let mut chunks = node.console(api::ConsoleRequest { vm, follow }).await?.into_inner();
            while let Some(chunk) = chunks.message().await? {
                output.raw(&chunk.data)?;
            }
        }
    }
    Ok(())
}

/// Reads a file that a section or a descriptor fits in, or standard input.
fn section(path: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::new(USAGE, format!("{}: {why}", path.display()));
    let opened: std::io::Result<Box<dyn Read>> = match path.to_str() {
        Some("-") => Ok(Box::new(std::io::stdin())),
        _ => std::fs::File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let read = opened.and_then(|file| {
        let mut text = vec![];
        file.take(MAX_SECTION + 1).read_to_end(&mut text).map(|_| text)
    });
    let text = read.map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > MAX_SECTION {
        return Err(wrong("a descriptor has at most 2 MiB".to_owned()));
    }
    String::from_utf8(text).map_err(|_| wrong("it is not UTF-8 text".to_owned()))
}

/// Bytes of a descriptor that are taken; a call to the node takes 4 MiB.
const MAX_SECTION: u64 = 2 << 20;

async fn control(
    vm: String,
    action: &str,
    node: &mut Client,
    output: &Output,
) -> Result<(), Failure> {
    let ask = api::ControlRequest { vm, action: action.to_owned() };
    let vm = node.control_vm(ask).await?.into_inner();
    output.one(&vm_value(&vm), || format!("{} is {}", vm.name, vm.state));
    Ok(())
}

async fn relocate(
    ask: Move,
    boot: bool,
    node: &mut Client,
    output: &Output,
) -> Result<(), Failure> {
    let request = api::MoveRequest {
        vm: ask.vm,
        peers: ask.peers,
        local_only: ask.local_only,
        dry_run: ask.dry_run,
        boot,
        restart: ask.restart,
    };
    let operation = node.move_vm(request).await?.into_inner();
    follow_all(vec![operation], ask.detach, node, output).await
}

async fn op(verb: Op, node: &mut Client, output: &Output) -> Result<(), Failure> {
    match verb {
        Op::List => {
            let all = node.list_operations(api::Nothing {}).await?.into_inner().operations;
            output.list(&all, operation_value, &["ID", "KIND", "VM", "PHASE", "RESULT"], |op| {
                vec![
                    op.id.clone(),
                    op.kind.clone(),
                    op.vm.clone(),
                    op.phase.clone(),
                    dash(&op.result),
                ]
            });
            Ok(())
        }
        Op::Show { id } => {
            let op = node.get_operation(api::OperationId { id }).await?.into_inner();
            output.one(&operation_value(&op), || {
                let mut lines = vec![
                    format!("{} of VM {}: {}", op.kind, op.vm, op.phase),
                    format!("result  {}", dash(&op.result)),
                ];
                lines.extend(op.details.iter().map(|detail| format!("        {detail}")));
                let log = op.log.iter();
                lines.extend(log.map(|line| format!("{}  {}", time(line.unix_ms), line.text)));
                lines.join("\n")
            });
            Ok(())
        }
        Op::Wait { id, timeout } => {
            let operation = node.get_operation(api::OperationId { id }).await?.into_inner();
            let waiting = follow_all(vec![operation], false, node, output);
            match timeout {
                None => waiting.await,
                Some(seconds) => {
                    let limit = Duration::from_secs(seconds);
                    tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| {
                        let text = "not ended in that time; the operation goes on";
                        Err(Failure::new(TIMED_OUT, text))
                    })
                }
            }
        }
        Op::Cancel { id } => {
            node.cancel_operation(api::OperationId { id: id.clone() }).await?;
            output.one(&json!({ "cancelled": id }), || format!("{id} is cancelled"));
            Ok(())
        }
    }
}

/// Follows operations to their ends, unless told not to; fails like the first that failed.
pub(crate) async fn follow_all(
    operations: Vec<api::Operation>,
    detach: bool,
    node: &mut Client,
    output: &Output,
) -> Result<(), Failure> {
    let mut failure = None;
    for operation in operations {
        if detach {
            output.one(&operation_value(&operation), || operation.id.clone());
            continue;
        }
        let ended = follow(operation, node, output).await?;
        if let Err(why) = judge(&ended, output) {
            failure.get_or_insert(why);
        }
    }
    failure.map_or(Ok(()), Err)
}

async fn follow(
    operation: api::Operation,
    node: &mut Client,
    output: &Output,
) -> Result<api::Operation, Failure> {
    let bar = output.shows_bars().then(|| {
        let style = "{bytes}/{total_bytes} {wide_bar} {msg}";
        let style = ProgressStyle::with_template(style).expect("a legal template");
        ProgressBar::no_length().with_style(style)
    });
    let id = api::OperationId { id: operation.id.clone() };
    let mut watch = node.watch_operation(id).await?.into_inner();
    let (mut now, mut told) = (operation, 0);
    while let Some(next) = watch.message().await? {
        now = next;
        for line in now.log.iter().skip(told) {
            match &bar {
                Some(bar) => bar.println(&line.text),
                None => output.remark(&line.text),
            }
        }
        told = told.max(now.log.len());
        if let Some(bar) = &bar
            && now.bytes_total > 0
        {
            bar.set_length(now.bytes_total);
            bar.set_position(now.bytes_done);
            bar.set_message(pace(&now));
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(now)
}

/// How fast the bytes of an operation come, and how long the rest takes.
fn pace(op: &api::Operation) -> String {
    let rate = match op.bytes_second {
        0 => return String::new(),
        rate => format!("{}/s", model::Bytes(rate)),
    };
    match op.seconds_left.map(std::time::Duration::from_secs) {
        Some(left) => format!("{rate}, {} left", indicatif::HumanDuration(left)),
        None => rate,
    }
}

/// What an ended operation means.
fn judge(op: &api::Operation, output: &Output) -> Result<(), Failure> {
    let why = op.details.join("\n  ");
    let (code, text) = match op.result.as_str() {
        "done" => {
            output.one(&operation_value(op), || format!("done: VM {}", op.vm));
            return Ok(());
        }
        "passed_up" => {
            output.one(&operation_value(op), || format!("VM {} has left this site", op.vm));
            return Ok(());
        }
        "ranking" => {
            output.one(&operation_value(op), || {
                let numbered = op.details.iter().enumerate();
                let lines: Vec<String> =
                    numbered.map(|(n, line)| format!("{}. {line}", n + 1)).collect();
                lines.join("\n")
            });
            return Ok(());
        }
        "no_place" if why.is_empty() => {
            let text = "no place was found: no host here takes it, and no peer could be asked";
            (REFUSED, text.to_owned())
        }
        "no_place" => (REFUSED, format!("no place was found:\n  {why}")),
        "gave_up" => (FAILED, format!("given up, the VM is where it was: {why}")),
        "parked" => (FAILED, format!("the VM is parked, its files are kept: {why}")),
        "cancelled" => (FAILED, "cancelled; the VM is where it was".to_owned()),
        _ => (FAILED, "the node ended before the operation did; it goes on after a restart".into()),
    };
    if output.format() == Format::Json {
        output.line(&operation_value(op));
    }
    Err(Failure::new(code, text))
}

fn utf8(path: PathBuf) -> Result<String, Failure> {
    path.into_os_string()
        .into_string()
        .map_err(|_| Failure::new(USAGE, "a path must be valid UTF-8"))
}
