//! One function per group of routes: read, ask `app`, answer.

use axum::response::Response;
use vmkeep_api::body::{AdoptRequest, AdoptionProposal, ApplyRequest, TokenCreate, VolumeCreate};
use vmkeep_store::keys;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::Revision;
use vmkeep_types::manifest::{self, Manifest};
use vmkeep_types::name::Name;
use vmkeep_types::operation::Operation;
use vmkeep_types::record::Leaving;
use vmkeep_types::vm::VmSpec;

use super::call::Call;
use super::relay::{ask_node, read, to_node, to_node_at, to_vm};
use super::{found, respond, watch};
use crate::app::{
    self, apply, drain, event, image, network, node, op, placement, pool, upload, vm, vm_adopt, vm_migrate, vm_parts, vm_write, volume,
};
use crate::auth;
use crate::cache::{Wanted, has_labels};
use crate::stonith;
use crate::view::Sight;

pub(super) type Answer = Result<Response, Error>;

/// The answer to one request; every id of the route table has its line here.
pub async fn handle(mut call: Call) -> Answer {
    if call.route.takes_idempotency_key() {
        call.read_repeat().await?;
        if let Some(op) = app::ask::repeated(call.store(), &call.ask).await? {
            return Ok(respond::accepted(op));
        }
    }
    let id = call.route.id;
    match id.split_once('.').map_or(id, |(noun, _)| noun) {
        "vm" => vms(call).await,
        "image" | "upload" => images(call).await,
        "volume" => volumes(call).await,
        "network" | "pool" => networks(call).await,
        "op" | "event" => history(call).await,
        "token" => tokens(call).await,
        "secret" => secrets(call).await,
        "cluster" => super::cluster::cluster(call).await,
        "ha" => super::ha::ha(call).await,
        "node" => nodes(call).await,
        "fence" => fences(call).await,
        "place" => placement(call).await,
        "apply" => applied(call).await,
        _ => super::host::host(call).await,
    }
}

pub(super) fn no_handler(call: &Call) -> Error {
    Error::internal(format!("route {} has no handler", call.route.id))
}

async fn vms(mut call: Call) -> Answer {
    match call.route.id {
        "vm.list" if call.flag("watch") => watch::follow(call, watch::What::Vms).await,
        "vm.list" => vm_list(&call).await,
        "vm.create" => {
            let spec = manifest::vm_from_json(call.value().await?)?;
            found::foreign_domains(&mut call, std::slice::from_ref(&spec.name)).await?;
            found::check_wish(&call, &spec).await?;
            accepted_with(&call, vm_write::create(call.store(), &call.ask, spec).await?)
        }
        "vm.get" => {
            let ready = call.server.cache.vm(call.store(), &call.ask.project, &call.name()?).await?;
            let mut response = respond::ready(ready.json(sight(&call)).clone());
            respond::etag(&mut response, ready.spec_revision);
            Ok(response)
        }
        "vm.put" => {
            let name = call.name()?;
            let spec = manifest::vm_from_json(call.value().await?)?;
            if spec.name != name {
                return Err(
                    Error::invalid(format!("the body names '{}', the path '{name}'", spec.name)).hint("rename with the action `rename`")
                );
            }
            found::foreign_domains(&mut call, std::slice::from_ref(&spec.name)).await?;
            found::check_wish(&call, &spec).await?;
            match vm_write::put(call.store(), &call.ask, spec, vm_write::Same::Kept).await {
                Ok(written) => accepted_with(&call, written),
                Err(error) if error.code == Code::Stale => {
                    let now = vm_parts::record(call.store(), &call.ask.project, &name).await?.modified;
                    Ok(respond::stale(error, now))
                }
                Err(error) => Err(error),
            }
        }
        "vm.delete" => {
            let leaving = if call.flag("keep_disks") { Leaving::DeleteKeepDisks } else { Leaving::Delete };
            accepted(&call, vm::leave(call.store(), &call.ask, &call.name()?, "vm.delete", leaving).await?)
        }
        "vm.action" => {
            let (wish, name) = (call.json().await?, call.name()?);
            let action = call.field("action");
            let op = vm::action(call.store(), &call.ask, &name, action, wish).await?;
            if action != "start" {
                return accepted(&call, op);
            }
            call.server.metrics.operation(&op.kind);
            Ok(respond::accepted_with(op, vm::start_warnings(call.store(), &call.ask.project, &name).await?))
        }
        "vm.forecast" => {
            let told = app::ha::check_vm(call.store(), &call.server.cache, &call.ask.project, &call.name()?).await?;
            Ok(respond::json(&told))
        }
        "vm.movable" => Ok(respond::json(&vm_migrate::movable(call.store(), &call.server.cache, &call.ask.project, &call.name()?).await?)),
        "vm.adopt" => adopt(call).await,
        "vm.explain" => placement(call).await,
        "vm.events" => {
            let record = vm_parts::record(call.store(), &call.ask.project, &call.name()?).await?.value;
            let prefix = keys::events_of(&call.ask.project, "vm", record.id);
            events(call, &prefix).await
        }
        "vm.xml" | "vm.console" | "vm.vnc" | "vm.screenshot" | "vm.sendkey" | "vm.exec" | "vm.addresses" | "vm.logs" => to_vm(call).await,
        _ => Err(no_handler(&call)),
    }
}

async fn vm_list(call: &Call) -> Answer {
    let after = respond::after(call).await?;
    let wanted = Wanted { labels: call.labels()?, after, limit: respond::limit(call)?, sight: sight(call) };
    Ok(respond::ready(call.server.cache.page(call.store(), &call.ask.project, &wanted).await?))
}

fn sight(call: &Call) -> Sight {
    Sight::of(call.ask.caller.role)
}

/// Renaming is no edit.
fn names_itself(body: &Name, path: &Name) -> Result<(), Error> {
    if body == path { Ok(()) } else { Err(Error::invalid(format!("the body names '{body}', the path '{path}'"))) }
}

/// An operation was begun.
fn accepted(call: &Call, op: Operation) -> Answer {
    call.server.metrics.operation(&op.kind);
    Ok(respond::accepted(op))
}

fn accepted_with(call: &Call, written: vm_write::Written) -> Answer {
    call.server.metrics.operation(&written.op.kind);
    let mut response = respond::accepted_with(written.op, written.warnings);
    written.revision.into_iter().for_each(|revision| respond::etag(&mut response, revision));
    Ok(response)
}

async fn adopt(mut call: Call) -> Answer {
    let wish: AdoptRequest = call.json().await?;
    let fine = !wish.domain.is_empty()
        && wish.domain.len() <= 128
        && wish.domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if !fine {
        return Err(
            Error::invalid(format!("'{}' is no libvirt domain name that can be taken over", wish.domain)).hint("give its UUID instead")
        );
    }
    let node = wish.node.clone().unwrap_or_else(|| call.server.node.clone());
    // An older node proposes nothing for a domain of ours without that word.
    let mut proposal: AdoptionProposal = ask_node(&call, &node, &format!("/n/domains/{}/adoption?of_ours=true", wish.domain)).await?;
    if wish.disks {
        let name = wish.name.unwrap_or(proposal.spec.name.clone());
        return Ok(respond::accepted(vm_adopt::adopt_disks(call.store(), &call.ask, &name, &proposal).await?));
    }
    vm_adopt::refuse_kept(call.store(), &mut proposal).await?;
    let warnings = proposal.warnings.clone();
    let op = vm_adopt::adopt(call.store(), &call.ask, &node, proposal, wish.name).await?;
    call.server.metrics.operation(&op.kind);
    Ok(respond::accepted_with(op, warnings))
}

async fn images(mut call: Call) -> Answer {
    let node = call.server.node.clone();
    match call.route.id {
        "image.list" if call.flag("watch") => watch::follow(call, watch::What::Images).await,
        "image.list" => {
            let revision = revision(&call).await?;
            let mut rows = image::list(call.store(), &call.ask.project).await?;
            let labels = call.labels()?;
            rows.retain(|image| has_labels(&image.spec.labels, &labels));
            respond::page(&call, rows, revision, |i| i.spec.name.to_string()).await
        }
        "image.create" => {
            let spec = manifest::image_from_json(call.value().await?)?;
            accepted(&call, image::create(call.store(), &call.ask, Some(&node), spec).await?)
        }
        "image.get" => {
            let found = image::stored(call.store(), &call.ask.project, &call.name()?).await?;
            Ok(respond::tagged(&image::view(call.store(), found.value).await?, found.modified))
        }
        "image.put" => {
            let name = call.name()?;
            let spec = manifest::image_from_json(call.value().await?)?;
            names_itself(&spec.name, &name)?;
            let (view, revision) = image::put(call.store(), &call.ask, spec).await?;
            Ok(respond::tagged(&view, revision))
        }
        "image.delete" => accepted(&call, image::delete(call.store(), &call.ask, &call.name()?).await?),
        "image.export" => {
            let record = image::find(call.store(), &call.ask.project, &call.name()?).await?;
            let uri = format!("/n/images/{}/content?pool={}", record.id, record.spec.pool);
            to_node_at(call, &record.node, &uri).await
        }
        "upload.create" => begin_upload(call, &node).await,
        "upload.get" | "upload.put" | "upload.delete" => {
            let id: uuid::Uuid = call.field("id").parse().map_err(|_| Error::invalid("an upload's id is a UUID"))?;
            let node = upload::node(call.store(), id, Some(&node)).await?;
            to_node(call, &node, &format!("/n/uploads/{id}")).await
        }
        _ => Err(no_handler(&call)),
    }
}

/// Bytes go where the image will be imported; each control node finds them there.
async fn begin_upload(call: Call, near: &Name) -> Answer {
    let server = call.server.clone();
    let node = app::any_node(call.store(), Some(near)).await?;
    let response = to_node(call, &node, "/n/uploads").await?;
    if response.status().is_success() && node != *near {
        let made: vmkeep_api::body::UploadCreated = read(response).await?;
        upload::note(server.store.as_ref(), made.upload, &node).await?;
        return Ok(respond::json(&made));
    }
    Ok(response)
}

/// Read before the rows: what changes between the two is told again by a watch from there, and not missed.
pub(super) async fn revision(call: &Call) -> Result<Revision, Error> {
    call.store().revision().await.map_err(app::store_error)
}

async fn volumes(mut call: Call) -> Answer {
    match call.route.id {
        "volume.list" if call.flag("watch") => watch::follow(call, watch::What::Volumes).await,
        "volume.list" => {
            let revision = revision(&call).await?;
            let rows = volume::list(call.store(), &call.ask.project).await?;
            respond::page(&call, rows, revision, |v| v.name.to_string()).await
        }
        "volume.create" => {
            let wish: VolumeCreate = call.json().await?;
            accepted(&call, volume::create(call.store(), &call.ask, wish).await?)
        }
        "volume.get" => {
            let found = volume::stored(call.store(), &call.ask.project, &call.name()?).await?;
            Ok(respond::tagged(&volume::view(call.store(), found.value).await?, found.modified))
        }
        "volume.delete" => accepted(&call, volume::delete(call.store(), &call.ask, &call.name()?).await?),
        _ => Err(no_handler(&call)),
    }
}

async fn networks(mut call: Call) -> Answer {
    match call.route.id {
        "network.list" if call.flag("watch") => watch::follow(call, watch::What::Networks).await,
        "network.list" => {
            let revision = revision(&call).await?;
            let mut rows = network::list(call.store(), &call.ask.project).await?;
            found::networks(&call, &mut rows).await?;
            respond::page(&call, rows, revision, |n| n.spec.name.to_string()).await
        }
        "network.put" => {
            let name = call.name()?;
            let spec = manifest::network_from_json(call.value().await?)?;
            names_itself(&spec.name, &name)?;
            let (view, revision) = network::put(call.store(), &call.ask, spec).await?;
            Ok(respond::tagged(&view, revision))
        }
        "network.get" => {
            let found = network::stored(call.store(), &call.ask.project, &call.name()?).await?;
            let mut view = network::view(call.store(), found.value).await?;
            found::networks(&call, std::slice::from_mut(&mut view)).await?;
            Ok(respond::tagged(&view, found.modified))
        }
        "network.delete" => accepted(&call, network::delete(call.store(), &call.ask, &call.name()?).await?),
        "pool.list" => {
            let revision = revision(&call).await?;
            let mut rows = pool::list(call.store()).await?;
            found::pools(&call, &mut rows).await?;
            respond::page(&call, rows, revision, |p| p.spec.name.to_string()).await
        }
        "pool.get" => {
            let found = pool::stored(call.store(), &call.name()?).await?;
            let mut view = pool::view(found.value);
            view.not_on = pool::not_on(call.server.cache.fleet(call.store()).await?.as_ref(), &view);
            found::pools(&call, std::slice::from_mut(&mut view)).await?;
            Ok(respond::tagged(&view, found.modified))
        }
        "pool.put" => {
            let name = call.name()?;
            let spec = manifest::pool_from_json(call.value().await?)?;
            names_itself(&spec.name, &name)?;
            let (view, revision) = pool::put(call.store(), &call.ask, spec).await?;
            Ok(respond::tagged(&view, revision))
        }
        "pool.delete" => {
            pool::delete(call.store(), &call.ask, &call.name()?).await?;
            Ok(respond::nothing())
        }
        _ => Err(no_handler(&call)),
    }
}

async fn history(call: Call) -> Answer {
    match call.route.id {
        "op.list" if call.flag("watch") => {
            let prefix = keys::ops(&call.ask.project);
            watch::follow(call, watch::What::Stored(prefix)).await
        }
        "op.list" => {
            let revision = revision(&call).await?;
            let mut rows: Vec<Operation> =
                app::list_readable(call.store(), &keys::ops(&call.ask.project)).await?.into_iter().map(|s| s.value).collect();
            rows.sort_by_key(|op| op.id);
            respond::page(&call, rows, revision, |op| op.id.to_string()).await
        }
        "op.get" if call.flag("watch") => watch::operation(call).await,
        "op.get" => {
            let found = op::find(call.store(), &call.ask.project, call.field("id")).await?;
            Ok(respond::tagged(&found.value, found.modified))
        }
        "op.cancel" => Ok(respond::json(&op::cancel(call.store(), &call.ask, call.field("id")).await?)),
        "event.get" => Ok(respond::json(&event::find(call.store(), &call.ask.project, call.field("id")).await?)),
        "event.list" => {
            let prefix = event::all(&call.ask.project);
            events(call, &prefix).await
        }
        _ => Err(no_handler(&call)),
    }
}

async fn events(call: Call, prefix: &str) -> Answer {
    if call.flag("watch") {
        return watch::follow(call, watch::What::Stored(prefix.to_owned())).await;
    }
    let revision = revision(&call).await?;
    let rows = event::list(call.store(), prefix).await?;
    respond::page(&call, rows, revision, event::place).await
}

async fn tokens(mut call: Call) -> Answer {
    match call.route.id {
        "token.list" => {
            let revision = revision(&call).await?;
            let rows = auth::list(call.store()).await?;
            respond::page(&call, rows, revision, |token| token.id.clone()).await
        }
        "token.create" => {
            let wish: TokenCreate = call.json().await?;
            Ok(respond::json(&auth::create_for(call.store(), &call.ask, wish).await?))
        }
        "token.delete" => {
            auth::delete(call.store(), call.field("id")).await?;
            Ok(respond::nothing())
        }
        _ => Err(no_handler(&call)),
    }
}

async fn secrets(call: Call) -> Answer {
    match call.route.id {
        "secret.show" => Ok(respond::json(&app::secret::show(call.store()).await?)),
        "secret.rotate" => Ok(respond::json(&app::secret::rotate(call.store(), &call.ask).await?)),
        _ => Err(no_handler(&call)),
    }
}

async fn applied(mut call: Call) -> Answer {
    let request: ApplyRequest = call.json().await?;
    // Those that do not parse are told by the application itself.
    let parsed = request.manifests.iter().filter_map(|manifest| manifest::from_json(manifest.clone()).ok());
    let vms: Vec<VmSpec> = parsed.filter_map(|manifest| if let Manifest::Vm(spec) = manifest { Some(spec) } else { None }).collect();
    let names: Vec<Name> = vms.iter().map(|vm| vm.name.clone()).collect();
    found::foreign_domains(&mut call, &names).await?;
    found::look_again(&call, &names).await?;
    for vm in &vms {
        found::check_wish(&call, vm).await?;
    }
    Ok(respond::json(&apply::apply(call.store(), &call.server.cache, &call.ask, request).await?))
}

async fn nodes(mut call: Call) -> Answer {
    match call.route.id {
        "node.list" => {
            let revision = revision(&call).await?;
            let rows = node::list(call.store()).await?;
            respond::page(&call, rows, revision, |n| n.facts.name.to_string()).await
        }
        "node.get" => {
            let (view, revision) = node::show(call.store(), &call.name()?).await?;
            Ok(respond::tagged(&view, revision))
        }
        "node.put" => {
            let name = call.name()?;
            let spec = manifest::node_from_json(call.value().await?)?;
            names_itself(&spec.name, &name)?;
            let (view, revision) = node::put(call.store(), &call.ask, spec).await?;
            Ok(respond::tagged(&view, revision))
        }
        "node.drain" => {
            let wish = call.json().await?;
            accepted(&call, drain::drain(call.store(), &call.ask, &call.name()?, wish).await?)
        }
        "node.action" => {
            let wish = call.json().await?;
            let (view, revision) = node::action(call.store(), &call.ask, &call.name()?, call.field("action"), wish).await?;
            Ok(respond::tagged(&view, revision))
        }
        _ => Err(no_handler(&call)),
    }
}

async fn fences(mut call: Call) -> Answer {
    let name = call.name()?;
    match call.route.id {
        "fence.get" => Ok(respond::json(&stonith::show(call.store(), &name).await?)),
        "fence.put" => {
            let spec = call.json().await?;
            Ok(respond::json(&stonith::put(call.store(), &call.ask, &name, spec).await?))
        }
        "fence.delete" => {
            stonith::delete(call.store(), &name).await?;
            Ok(respond::nothing())
        }
        "fence.test" => {
            let wish = call.json().await?;
            Ok(respond::json(&stonith::test(call.store(), call.server.fence_agents(), &call.server.node, &name, &wish).await?))
        }
        _ => Err(no_handler(&call)),
    }
}

async fn placement(mut call: Call) -> Answer {
    match call.route.id {
        "vm.explain" => Ok(respond::json(&placement::explain(call.store(), &call.server.cache, &call.ask.project, &call.name()?).await?)),
        "place.capacity" => Ok(respond::json(&placement::capacity(call.store(), &call.server.cache).await?)),
        "place.simulate" => {
            let wish = call.json().await?;
            Ok(respond::json(&placement::simulate(call.store(), &call.server.cache, &call.ask.project, wish).await?))
        }
        "place.balance" => Ok(respond::json(&placement::balance(call.store(), &call.server.cache).await?)),
        _ => Err(no_handler(&call)),
    }
}
