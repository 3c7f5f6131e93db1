//! The way to the node.

use std::path::Path;

use hyper_util::rt::TokioIo;
use proto::admin::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::exit::{Failure, LATER, NOT_FOUND};

/// What the admin API's client is.
pub(crate) type Client = AdminClient<Channel>;

/// Connects to the node of the site at `site`, a folder or its admin socket.
pub(crate) async fn connect(site: &Path) -> Result<Client, Failure> {
    let socket = if site.is_dir() { site.join("admin.sock") } else { site.to_owned() };
    if site.is_dir() && !site.join("sojourn.toml").exists() {
        return Err(no_site(site));
    }
    if !site.exists() {
        return Err(no_site(site));
    }
    let path = socket.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://node.invalid");
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20)),
        Err(_) => Err(Failure::new(
            LATER,
            format!(
                "no node answers at {}; start it with `sojourn site run {}`",
                socket.display(),
                site.display()
            ),
        )),
    }
}

fn no_site(site: &Path) -> Failure {
    let text = format!(
        "{0} holds no site; name its folder with --site or SOJOURN_SITE, or make one with \
         `sojourn site init {0} --name NAME`",
        site.display()
    );
    Failure::new(NOT_FOUND, text)
}
