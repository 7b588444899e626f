//! Servers that people run on their Macs, by the ports that they take when nobody says otherwise.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pomona_common::{ModelName, ServerAddress, TextAsk, TextPrompt};
use pomona_upstream::{Client, Rate, Settings, UpstreamError};

/// Port, and who listens there.
pub const KNOWN: &[(u16, &str)] = &[
    (8000, "macMLX, oMLX or vllm-mlx"),
    (8080, "mlx_lm.server or llama-server"),
    (10240, "mlx-batch-server"),
    (1234, "LM Studio"),
    (11434, "Ollama"),
];
/// One that is there answers at once.
const LOOK: Duration = Duration::from_secs(2);
/// What a model may think about before its first text: on a laptop, with a long prompt.
const FIRST_TEXT: Duration = Duration::from_secs(300);

/// A server that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who it probably is.
    pub who: &'static str,
    /// Where it is.
    pub url: String,
    /// What it has.
    pub models: Vec<String>,
}

/// A client of one, without limits of its own: what is asked at once is decided before.
///
/// # Errors
/// The file with its key cannot be read, or has none.
pub fn client(address: ServerAddress, key_file: Option<&Path>) -> Result<Client, String> {
    let key = key_file.map(|file| match fs::read_to_string(file) {
        Ok(key) if key.trim().is_empty() => Err(format!("{}: there is no API key in it", file.display())),
        Ok(key) => Ok(key),
        Err(error) => Err(format!("its API key, {}: {error}", file.display())),
    });
    Client::new(Settings {
        address,
        key: key.transpose()?,
        parallel: 1024,
        rate: Rate::default(),
        first_text: FIRST_TEXT,
        // What it does is seen, and a restart must not keep it out for minutes.
        left_alone: false,
        authorities: None,
        max_tokens_field: "max_tokens".to_owned(),
    })
}

/// What a server has.
///
/// # Errors
/// It is not there, or does not speak OpenAI's API.
pub async fn models(client: &Client) -> Result<Vec<String>, UpstreamError> {
    let asked = tokio::time::timeout(LOOK, client.get("/models")).await;
    let listed = asked.unwrap_or(Err(UpstreamError::Silent(pomona_upstream::Phase::Status)))?;
    let models = listed["data"].as_array();
    let models = models.ok_or_else(|| UpstreamError::Garbage("no list of models".to_owned()))?;
    let ids = models.iter().filter_map(|model| model["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// Has a server answer with one token, for which it loads the model if it had not.
///
/// # Errors
/// It does not answer.
pub async fn first_token(client: &Client, name: ModelName, there: &str) -> Result<(), UpstreamError> {
    let prompt = TextPrompt::Chat(vec![("user".to_owned(), "Hi".to_owned())]);
    let ask = TextAsk::new(name, prompt, 1);
    let mut answer = client.turn(2)?.ask(&ask, there).await?;
    while answer.next().await?.is_some() {}
    Ok(())
}

/// Looks at the known ports.
pub async fn detect(known: &[(u16, &'static str)]) -> Vec<Found> {
    let mut found = Vec::new();
    for (port, who) in known {
        let address = ServerAddress {
            tls: false,
            host: "127.0.0.1".to_owned(),
            port: *port,
            base: "/v1".to_owned(),
        };
        let url = address.to_string();
        let Ok(client) = client(address, None) else {
            continue;
        };
        if let Ok(models) = models(&client).await {
            found.push(Found { who, url, models });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Sends one answer, to whoever asks first.
    async fn answers(listener: TcpListener, body: &'static str) -> std::io::Result<String> {
        let (mut socket, _) = listener.accept().await?;
        let mut asked = vec![0; 4096];
        let read = socket.read(&mut asked).await?;
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
        let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}");
        socket.write_all(answer.as_bytes()).await?;
        Ok(String::from_utf8_lossy(&asked[..read]).into_owned())
    }

    #[tokio::test]
    async fn servers_are_found_by_their_ports_and_what_does_not_speak_the_api_is_none() -> std::io::Result<()>
    {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().map(|address| address.port()))
            .collect::<std::io::Result<_>>()?;
        let known = [
            (ports[0], "nobody"),
            (ports[1], "a page"),
            (ports[2], "LM Studio"),
        ];
        let server = listeners.pop();
        let page = listeners.pop();
        // Nobody listens at the first any more.
        listeners.clear();
        let (Some(server), Some(page)) = (server, page) else {
            return Ok(());
        };
        let models =
            r#"{"object": "list", "data": [{"id": "qwen"}, {"id": "llama"}, {"object": "nothing"}]}"#;
        let (found, page, asked) = tokio::join!(
            detect(&known),
            answers(page, "<html></html>"),
            answers(server, models)
        );
        page?;
        assert!(asked?.starts_with("GET /v1/models HTTP/1.1"));
        let expected = Found {
            who: "LM Studio",
            url: format!("http://127.0.0.1:{}/v1", ports[2]),
            models: vec!["qwen".into(), "llama".into()],
        };
        assert_eq!(found, [expected]);
        Ok(())
    }
}
