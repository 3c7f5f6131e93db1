//! `usage export`: what VMs have used, line by line.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use model::key::Signed;
use model::{PeerName, Time, VmId};
use monitoring::book::Asked;
use monitoring::usage::{HOUR_MS, Statement, Stay, Sum, Used, sum_by};
use proto::admin as api;
use tonic::{Code, Status};

use super::{Admin, bad, down};

/// What this site knows of a VM beside its usage.
struct Known {
    name: String,
    certificates: Vec<u8>,
}

impl Admin {
    /// The lines that are asked for.
    pub(super) async fn usage_lines(
        &self,
        ask: api::UsageRequest,
    ) -> Result<Vec<api::UsageLine>, Status> {
        let asked = Asked {
            vm: match ask.vm.as_str() {
                "" => None,
                text => Some(self.accounted(text).await?),
            },
            since: full_hour(ask.since_unix_ms)?,
            until: full_hour(ask.until_unix_ms)?,
        };
        let stays = self.monitor.stays(asked).await;
        let stays = stays.map_err(|error| Status::unavailable(error.to_string()))?;
        let vms: BTreeSet<VmId> = stays.iter().map(|stay| stay.vm).collect();
        let known = self.driver.visit(move |core| {
            let known = vms.into_iter().filter_map(|vm| {
                let entry = core.site.state.vms.get(&vm)?;
                let certificates =
                    postcard::to_allocvec(&entry.chain).expect("a chain is plain data");
                let name = entry.descriptor.name.to_string();
                Some((vm, Known { name, certificates }))
            });
            known.collect::<HashMap<VmId, Known>>()
        });
        let known = known.await.map_err(down)?;
        let name = |vm: &VmId| known.get(vm).map(|known| known.name.clone()).unwrap_or_default();
        Ok(match ask.by.as_str() {
            "stay" => {
                let mut told = BTreeSet::new();
                let line = |stay: &Stay| {
                    let is_first = told.insert(stay.vm);
                    let of_vm = known.get(&stay.vm).filter(|_| is_first);
                    api::UsageLine {
                        name: name(&stay.vm),
                        certificates: of_vm.map(|k| k.certificates.clone()).unwrap_or_default(),
                        ..stay_line(stay)
                    }
                };
                stays.iter().map(line).collect()
            }
            "vm" => {
                let line = |(vm, sum): (VmId, Sum)| api::UsageLine {
                    vm: vm.to_string(),
                    name: name(&vm),
                    ..sum_line(&sum)
                };
                sum_by(&stays, |stay| stay.vm).into_iter().map(line).collect()
            }
            "peer" => {
                let line = |((up, via), sum): ((Peer, Peer), Sum)| api::UsageLine {
                    for_peer: text(up.as_ref()),
                    through_peer: text(via.as_ref()),
                    ..sum_line(&sum)
                };
                let sums: BTreeMap<(Peer, Peer), Sum> =
                    sum_by(&stays, |stay| (stay.up.clone(), stay.via.clone()));
                sums.into_iter().map(line).collect()
            }
            other => return Err(bad(format!("usage is by stay, vm or peer, got {other:?}"))),
        })
    }

    /// A VM by name or id; one that this site has left, by its full id.
    pub(super) async fn accounted(&self, text: &str) -> Result<VmId, Status> {
        match (self.find(text).await, text.parse()) {
            (Err(status), Ok(vm)) if status.code() == Code::NotFound => Ok(vm),
            (found, _) => found,
        }
    }
}

type Peer = Option<PeerName>;

fn full_hour(unix_ms: u64) -> Result<Option<Time>, Status> {
    match unix_ms {
        0 => Ok(None),
        ms if ms.is_multiple_of(HOUR_MS) => Ok(Some(Time(ms))),
        _ => Err(bad(
            "a period begins and ends at a full hour (UTC), since of each hour one statement is \
             kept; name the hour before or after",
        )),
    }
}

fn text(peer: Option<&PeerName>) -> String {
    peer.map(ToString::to_string).unwrap_or_default()
}

fn used_line(used: &Used) -> api::UsageLine {
    api::UsageLine {
        cpu_ns: used.cpu_ns,
        memory_gib_hours: used.memory_gib_hours(),
        disk_read_bytes: used.disk_read_bytes,
        disk_written_bytes: used.disk_written_bytes,
        network_received_bytes: used.network.map(|network| network.received_bytes),
        network_sent_bytes: used.network.map(|network| network.sent_bytes),
        ..api::UsageLine::default()
    }
}

fn stay_line(stay: &Stay) -> api::UsageLine {
    let statement = |signed: &Signed<Statement>| api::UsageStatement {
        body: signed.body.clone(),
        signature: signed.signature.0.to_vec(),
    };
    api::UsageLine {
        vm: stay.vm.to_string(),
        epoch: stay.epoch.0,
        for_peer: text(stay.up.as_ref()),
        through_peer: text(stay.via.as_ref()),
        vms: 1,
        stays: 1,
        since_unix_ms: stay.since.0,
        until_unix_ms: stay.until.0,
        state: stay.standing.as_str().to_owned(),
        owner: stay.statement.key.0.to_vec(),
        statement: Some(statement(&stay.statement)),
        before: stay.before.as_ref().map(statement),
        ..used_line(&stay.used)
    }
}

fn sum_line(sum: &Sum) -> api::UsageLine {
    api::UsageLine {
        vms: sum.vms.len() as u64,
        stays: sum.stays as u64,
        since_unix_ms: sum.since.0,
        until_unix_ms: sum.until.0,
        state: sum.standing.as_str().to_owned(),
        ..used_line(&sum.used)
    }
}
