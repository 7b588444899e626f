//! A request to the admin API: what it works on, and who asks.

use std::convert::Infallible;
use std::ops::Deref;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::Admin;

/// Header with the name of whoever typed a command. The socket lets one user of the machine in, who may call
/// themselves what they like: it is for people who work together.
const USER: &str = "x-pomona-user";

/// See the module's documentation.
pub(super) struct Asked {
    admin: Admin,
    /// Who asks, as they say.
    pub(super) by: String,
}

impl FromRequestParts<Admin> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Infallible> {
        let user = parts.headers.get(USER).and_then(|value| value.to_str().ok());
        Ok(Self {
            admin: admin.clone(),
            by: user.unwrap_or_default().to_owned(),
        })
    }
}

impl Deref for Asked {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        &self.admin
    }
}
