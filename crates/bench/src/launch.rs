//! From a launch to a running domain, against `virsh create` of the same XML with the disk already there.
//!
//! In turns: a VM is put and its operation followed until it is done; it is killed, and virsh creates a copy of its domain
//! (another name and UUID, not marked as ours, the same disk) while the disk is free; then both go away.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;
use serde_json::{Value, json};

use crate::fill::finish;
use crate::http::Connection;
use crate::report::{Report, Samples, Wanted, milliseconds};
use crate::virsh::Virsh;

/// A launch may take this much longer than `virsh create` …
const TIMES_VIRSH: f64 = 1.15;
/// … or by so much, whichever is more.
const ABOVE_VIRSH_MS: f64 = 60.0;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// The image to launch.
    #[arg(long)]
    image: String,
    /// Memory of the VM.
    #[arg(long, default_value = "128M")]
    memory: String,
    /// libvirt, as virsh reaches it.
    #[arg(long, default_value = "qemu:///system")]
    connect: String,
    /// How many launches.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut connection = Connection::open(&args.socket).await?;
    let virsh = Virsh::new(&args.connect);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for n in 0..args.rounds.max(1) {
        let name = format!("bench-launch-{n}");
        let measured = round(&mut connection, &virsh, args, &name).await;
        let gone = call(&mut connection, Method::DELETE, &format!("/v1/vms/{name}"), None).await;
        let (launch, create) = measured?;
        gone?;
        ours.push(launch);
        theirs.push(create);
    }
    let (ours, theirs) = (Samples::new(ours, begin.elapsed()), Samples::new(theirs, begin.elapsed()));
    let (launch, create) = (milliseconds(ours.percentile(50)), milliseconds(theirs.percentile(50)));
    let allowed = ABOVE_VIRSH_MS.max(create * (TIMES_VIRSH - 1.0));
    let mut report = Report::default();
    report.number("virsh create, p50", create, "ms", None);
    report.number("launch to running, p50", launch, "ms", None);
    report.number("launch, times virsh create", launch / create, "x", None);
    report.number("launch above virsh create", launch - create, "ms", Some(Wanted::AtMost(allowed.round())));
    Ok(report)
}

/// How long the launch took, and how long `virsh create` of the same.
async fn round(connection: &mut Connection, virsh: &Virsh, args: &Args, name: &str) -> anyhow::Result<(Duration, Duration)> {
    let wish = json!({ "name": name, "image": args.image, "memory": args.memory });
    let path = format!("/v1/vms/{name}");
    let begin = Instant::now();
    call(connection, Method::PUT, &path, Some(&wish)).await?;
    let launch = begin.elapsed();
    let xml = virsh.run(&["dumpxml", "--inactive", name]).await?;
    call(connection, Method::POST, &format!("{path}/actions/kill"), Some(&json!({}))).await?;

    let twin = format!("{name}-by-virsh");
    let uuid = between(&xml, "<uuid>", "</uuid>").context("a domain has a UUID")?;
    let file = tempfile::Builder::new().suffix(".xml").tempfile()?;
    std::fs::write(file.path(), twin_of(&xml, name, &twin, uuid))?;
    let begin = Instant::now();
    virsh.create(file.path()).await?;
    let create = begin.elapsed();
    virsh.run(&["destroy", &twin]).await?;
    Ok((launch, create))
}

/// A call that answers an operation, until that is done.
pub async fn call(connection: &mut Connection, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<()> {
    let answer = connection.json(method, path, body).await?;
    finish(connection, &answer, Instant::now() + PATIENCE).await
}

pub fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    text.split_once(from)?.1.split_once(to).map(|(inside, _)| inside)
}

/// The same machine under another name and UUID, without our mark: vmkeep leaves it alone.
pub fn twin_of(xml: &str, name: &str, twin: &str, uuid: &str) -> String {
    // The first bytes differ, so that it cannot be the VM's own; the SMBIOS table must say the same as the domain.
    let other = if uuid.starts_with("00000000") { "11111111" } else { "00000000" };
    let twin_uuid = format!("{other}{}", uuid.get(8..).unwrap_or_default());
    let plain = match (xml.split_once("<metadata>"), xml.split_once("</metadata>")) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => xml.to_owned(),
    };
    plain
        .replacen(&format!("<name>{name}</name>"), &format!("<name>{twin}</name>"), 1)
        .replace(&format!(">{uuid}<"), &format!(">{twin_uuid}<"))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_twin_is_the_same_machine_but_not_ours() {
        let xml = "<domain><name>a</name><uuid>12345678-90ab</uuid><metadata><v:vm>12345678-90ab</v:vm></metadata>\
            <entry name='uuid'>12345678-90ab</entry><source file='/x/12345678-90ab.qcow2'/></domain>";
        let twin = twin_of(xml, "a", "b", between(xml, "<uuid>", "</uuid>").expect("a UUID"));
        expect![
            "<domain><name>b</name><uuid>00000000-90ab</uuid><entry name='uuid'>00000000-90ab</entry><source file='/x/12345678-90ab.qcow2'/></domain>"
        ]
        .assert_eq(&twin);
    }
}
