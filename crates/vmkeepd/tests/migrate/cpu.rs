//! The CPU that a guest was given keeps it from hosts that cannot run it, before anything happens.

use expect_test::expect;
use serde_json::json;
use vmkeep_agent::hypervisor::XmlKind;
use vmkeep_api::place::DrainRequest;
use vmkeep_core::place;
use vmkeep_core::place::cpu::GuestCpu;
use vmkeep_server::app::vm_write::{self, Same};
use vmkeep_server::app::{drain, placement};
use vmkeep_store::{Store, keys, typed};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::VmId;
use vmkeep_types::migration::{MigrateOptions, MoveManner};
use vmkeep_types::name::Name;
use vmkeep_types::record::{VmChoices, VmRecord};

use super::cluster::{Cluster, ask};
use super::to;

/// As hosts of today: the model without what firmware took away.
pub const SKYLAKE: [&str; 4] = ["Skylake-Server", "Nehalem Haswell-noTSX", "ssbd", "mpx"];
const HASWELL: [&str; 4] = ["Haswell-noTSX", "Nehalem Haswell-noTSX", "ssbd", ""];
const NEHALEM: [&str; 4] = ["Nehalem", "Nehalem", "", ""];

async fn facts(c: &Cluster, node: &'static str) -> NodeFacts {
    let kv = c.store.get(&keys::facts(&Name::known(node))).await.expect("a read").expect("facts");
    typed::decode(&kv).expect("facts")
}

/// Both have told what their CPUs are.
async fn told(c: &Cluster, a: &str, b: &str) {
    let known = async |c: &Cluster, node: &'static str, model: &str| {
        c.describe(node).await;
        facts(c, node).await.offers.cpu_model == model
    };
    c.until("their CPUs are known", async |c| known(c, "a", a).await && known(c, "b", b).await).await;
}

async fn cpu(c: &Cluster, vm: VmId) -> String {
    let kv = c.store.get(&keys::choices(vm)).await.expect("a read").expect("choices");
    typed::decode::<VmChoices>(&kv).expect("choices").cpu_xml.unwrap_or_default()
}

/// Agent and leader write the same differently.
async fn parsed(c: &Cluster, vm: VmId) -> GuestCpu {
    GuestCpu::parse(&cpu(c, vm).await).expect("a named model")
}

async fn error(c: &Cluster, options: MigrateOptions) -> String {
    c.over(&c.migrate(options).await).await.error.map(|e| e.message).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_run_the_kept_cpu_is_refused_with_what_it_lacks() {
    let pool = tempfile::tempdir().expect("a folder");
    let c = Cluster::of_cpus(pool.path(), SKYLAKE, HASWELL).await;
    told(&c, "Skylake-Server", "Haswell-noTSX").await;
    c.node("b", "cordon").await;
    let vm = c.vm(json!({})).await;
    c.node("b", "uncordon").await;
    c.until("its CPU is kept", async |c| !cpu(c, vm).await.is_empty()).await;
    let cold = || MigrateOptions { manner: MoveManner::Cold, ..to("b") };
    let mut said = format!("live: {}\ncold: {}\n", error(&c, to("b")).await, error(&c, cold()).await);
    let view = placement::view(c.store.as_ref()).await.expect("a view");
    for verdict in place::explain(view.fleet(), view.fleet().guest(vm).expect("it is there")) {
        said += &format!("{}: {}\n", verdict.node, verdict.fits.map_or_else(|no| no.to_string(), |yes| yes.to_string()));
    }
    let wish = DrainRequest { at_once: Some(1), ..DrainRequest::default() };
    let op = drain::drain(c.store.as_ref(), &ask(), &Name::known("a"), wish).await.expect("taken");
    said += &format!("drain: {}\n", c.over(&op).await.error.map(|e| e.message).unwrap_or_default());
    expect![[r#"
        live: it has nowhere to go (b: of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: avx512f)
        cold: it has nowhere to go (b: of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: avx512f)
        a: 3.1 % used then
        b: of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: avx512f
        drain: 1 of 1 VMs are still on a: web: it has nowhere to go (b: of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: avx512f)
    "#]].assert_eq(&said);
    assert_eq!(c.runs_on(vm).await, ["a"]);
}

/// Whether it runs with KVM, which the leader must have heard of.
pub async fn knows_kvm(c: &Cluster, vm: VmId) -> bool {
    let kept = typed::get_json::<VmChoices>(c.store.as_ref(), &keys::choices(vm)).await.expect("a read");
    kept.is_some_and(|choices| choices.value.domain_type.as_deref() == Some("kvm"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sees_the_cpu_of_its_host_moves_live_or_cold_by_a_restart_there() {
    let pool = tempfile::tempdir().expect("a folder");
    let c = Cluster::of_cpus(pool.path(), SKYLAKE, SKYLAKE).await;
    told(&c, "Skylake-Server", "Skylake-Server").await;
    let or_cold = |node| MigrateOptions { manner: MoveManner::LiveOrCold, ..to(node) };
    let ended = async |c: &Cluster, options| {
        let op = c.migrate(options).await;
        let told = c.ending(&op).await;
        let way = c.op(&op).await.steps.first().map(|step| format!("; {step}")).unwrap_or_default();
        format!("{told}{way}\n")
    };
    let vm = c.vm(json!({"cpu": {"model": "host"}})).await;
    c.until("its KVM is known", async |c| knows_kvm(c, vm).await).await;
    let mut said = format!("live: {}", ended(&c, to("b")).await);
    said += &format!("or cold: {}", ended(&c, or_cold("b")).await);
    // Nothing keeps it from moving live any more.
    set_model(&c, vm, "auto").await;
    said += &format!("auto: {}", ended(&c, or_cold("a")).await);
    expect![[r#"
        live: Failed: it cannot move: cpu.model host: the guest sees this host's own CPU; with auto or a named model it can move; runs on a by generation 1
        or cold: Done; runs on b by generation 2; a -> b, off
        auto: Done; runs on a by generation 3; b -> a, live
    "#]]
    .assert_eq(&said);
}

/// A host that joins later takes nothing from the VMs that have the CPU of the cluster; new ones get what it can run too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cpu_of_the_cluster_is_kept_when_an_older_host_joins() {
    let pool = tempfile::tempdir().expect("a folder");
    let mut c = Cluster::of_cpus(pool.path(), SKYLAKE, HASWELL).await;
    told(&c, "Skylake-Server", "Haswell-noTSX").await;
    c.node("b", "cordon").await;
    let cluster = |name: &str| json!({"name": name, "cpu": {"model": "cluster"}});
    let vm = c.vm(cluster("web")).await;
    c.node("b", "uncordon").await;
    assert_eq!(error(&c, to("b")).await, "");
    assert_eq!(error(&c, to("a")).await, "");
    let before = cpu(&c, vm).await;
    c.end("b").await;
    let [model, usable, more, without] = NEHALEM;
    c.fake("b").offer_cpu(model, usable, more, without);
    c.begin("b");
    told(&c, "Skylake-Server", "Nehalem").await;
    let mut said = format!("{before}\nto b: {}\n", error(&c, to("b")).await);
    assert_eq!(cpu(&c, vm).await, before, "a guest's CPU does not change under it");
    c.node("b", "cordon").await;
    let newer = c.vm(cluster("web2")).await;
    said += &format!("{}\n", cpu(&c, newer).await);
    expect![[r#"
        <cpu mode='custom' match='exact' check='partial'>
          <model fallback='forbid'>Haswell-noTSX</model>
          <feature policy='require' name='ssbd'/>
        </cpu>
        to b: it has nowhere to go (b: of the CPU Haswell-noTSX, which all nodes could run when the VM got it, guests cannot have here: avx2, fma, ssbd)
        <cpu mode='custom' match='exact' check='partial'>
          <model fallback='forbid'>Nehalem</model>
        </cpu>
    "#]].assert_eq(&said);
    // It is brought down to what all can run: another model, then the cluster's again, and a cold start.
    set_model(&c, vm, "auto").await;
    assert_eq!(cpu(&c, vm).await, before, "auto keeps what it has");
    set_model(&c, vm, "cluster").await;
    assert_eq!(parsed(&c, vm).await, parsed(&c, newer).await);
    assert_eq!(c.over(&c.command("restart").await).await.error, None);
    let runs = c.hv("a").xml(vm, XmlKind::Live).await.expect("it runs");
    assert!(runs.contains("Nehalem</model>") && !runs.contains("Haswell-noTSX"), "{runs}");
    assert_eq!(parsed(&c, vm).await, parsed(&c, newer).await, "what ran before does not come back");
    c.node("b", "uncordon").await;
    assert_eq!(error(&c, to("b")).await, "");
}

async fn set_model(c: &Cluster, vm: VmId, model: &str) {
    let kv = c.store.get(&keys::vm(&Name::known("default"), vm)).await.expect("a read").expect("a record");
    let mut spec = typed::decode::<VmRecord>(&kv).expect("a record").spec;
    spec.cpu.model = model.to_owned();
    let written = vm_write::put(c.store.as_ref(), &ask(), spec, Same::Kept).await.expect("taken");
    assert_eq!(c.over(&written.op).await.error, None);
}
