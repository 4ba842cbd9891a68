//! `version`: of this program and of the daemon. A daemon that is away does not hide our own.

use serde::Serialize;
use vmkeep_api::body::VersionAnswer;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    server: Option<VersionAnswer>,
}

pub async fn run(ctx: &Ctx) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    let answer = match ctx.call("version") {
        Ok(call) => call.answer::<VersionAnswer>().await.map_err(Failure::from),
        Err(e) => Err(e),
    };
    let (server, failure) = match answer {
        Ok(server) => (Some(server), None),
        Err(e) => (None, Some(e)),
    };
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&Versions { client, server })?,
        _ => {
            ctx.printer.out(&format!("vmkeep   {client}"));
            if let Some(s) = server {
                ctx.printer.out(&format!("vmkeepd  {} on {} (store {}, level {})", s.version, s.node, s.store, s.level));
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
