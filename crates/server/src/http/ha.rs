//! High availability.

use vmkeep_types::error::Error;

use super::call::Call;
use super::handlers::{Answer, no_handler};
use super::respond;
use crate::app::ha;

pub async fn ha(mut call: Call) -> Answer {
    match call.route.id {
        "ha.status" => Ok(respond::json(&ha::status(call.store(), &call.server.cache).await?)),
        "ha.history" => Ok(respond::json(&ha::history(call.store()).await?)),
        "ha.check" => Ok(respond::json(&ha::check(call.store(), &call.server.cache).await?)),
        "ha.disarm" => {
            let wish = call.json().await?;
            ha::disarm(call.store(), &call.ask, wish).await?;
            Ok(respond::nothing())
        }
        "ha.arm" => {
            ha::arm(call.store()).await?;
            Ok(respond::nothing())
        }
        "ha.set" => {
            let change = call.json().await?;
            Ok(respond::json(&ha::set(call.store(), &change).await?))
        }
        "ha.confirm-dead" => {
            let wish = call.json().await?;
            let name = call.name()?;
            ha::confirm_dead(call.store(), &call.ask, &name, &wish).await?;
            Ok(respond::nothing())
        }
        _ => Err::<_, Error>(no_handler(&call)),
    }
}
