//! Servers of every kind: good ones, and those that hang, redirect, break off or send something else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use pomona_common::{FinishReason, ServerAddress, TextAsk, TextPrompt};
use pomona_upstream::{Answer, Client, Phase, Piece, Rate, Settings, UpstreamError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What each test gives a server to begin.
const FIRST_TEXT: Duration = Duration::from_secs(60);
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
const TEXT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Apples\"}}]}\n\n";
const THOUGHT: &str = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Hm\"}}]}\n\n";
const END: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// What a server does with a connection, after it has read the request.
#[derive(Clone)]
enum Does {
    /// Sends this and closes.
    Sends(String),
    /// Sends this and keeps the connection open.
    Hangs(String),
}

struct Server {
    client: Client,
    /// Ends with the test.
    _tasks: JoinSet<()>,
    requests: tokio::sync::mpsc::Receiver<String>,
}

async fn server(does: Does, parallel: usize) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = ServerAddress {
        tls: false,
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        base: "/v1".into(),
    };
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            open.spawn(serve(socket, does.clone(), sender.clone()));
        }
    });
    let client = Client::new(Settings {
        address,
        key: Some("sk-secret\n".into()),
        parallel,
        rate: Rate::default(),
        first_text: FIRST_TEXT,
        left_alone: true,
        authorities: None,
        max_tokens_field: "max_tokens".into(),
    });
    Server {
        client: client.unwrap(),
        _tasks: tasks,
        requests,
    }
}

async fn serve(mut socket: TcpStream, does: Does, requests: tokio::sync::mpsc::Sender<String>) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&read).ends_with('}') {
        let count = socket.read(&mut buffer).await.unwrap();
        if count == 0 {
            return;
        }
        read.extend_from_slice(&buffer[..count]);
    }
    let _ = requests.try_send(String::from_utf8(read).unwrap());
    let (Does::Sends(text) | Does::Hangs(text)) = &does;
    let _ = socket.write_all(text.as_bytes()).await;
    if matches!(does, Does::Hangs(_)) {
        // Until the client goes away.
        while socket.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}

fn asked() -> TextAsk {
    TextAsk::new(
        "org/a".parse().unwrap(),
        TextPrompt::Chat(vec![("user".into(), "Hello".into())]),
        9,
    )
}

async fn ask(client: &Client) -> Result<Answer, UpstreamError> {
    client.turn(12)?.ask(&asked(), "their-name").await
}

/// All of an answer, or what is wrong with it.
async fn all(client: &Client) -> Result<Vec<Piece>, UpstreamError> {
    let mut answer = ask(client).await?;
    let mut pieces = Vec::new();
    while let Some(piece) = answer.next().await? {
        pieces.push(piece);
    }
    Ok(pieces)
}

#[tokio::test]
async fn an_answer_comes_as_it_is_made_and_the_request_says_only_what_it_must() {
    let mut server = server(Does::Sends(format!("{HEAD}{TEXT}{END}")), 2).await;
    let end = Piece::End {
        reason: FinishReason::Stop,
        usage: None,
    };
    assert_eq!(
        all(&server.client).await,
        Ok(vec![Piece::Text("Apples".into()), end])
    );
    let request = server.requests.recv().await.unwrap();
    for part in [
        "POST /v1/chat/completions HTTP/1.1\r\n",
        "host: 127.0.0.1:",
        "authorization: Bearer sk-secret\r\n",
        "x-pomona-spilled: 1\r\n",
        "\"model\":\"their-name\"",
    ] {
        assert!(request.contains(part), "{part}: {request}");
    }
    assert!(!request.contains("org/a"), "{request}");
    assert_eq!(server.client.under_way(), 0);
}

#[tokio::test]
async fn what_is_no_answer_is_named_and_tells_no_secret() {
    let json = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (sent, why) in [
        (
            "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "redirects (HTTP 302)",
        ),
        (
            json(
                "401 Unauthorized",
                "{\"error\":{\"message\":\"bad key sk-secret\",\"code\":\"invalid_api_key\"}}",
            ),
            "HTTP 401 (invalid_api_key)",
        ),
        (
            json("500 Oops", "{\"error\":{\"code\":\"sk-secret 1\"}}"),
            "HTTP 500",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
            "text/html where events",
        ),
        (format!("{HEAD}data: <html>\n\n"), "not JSON"),
        (format!("{HEAD}{TEXT}"), "broke off"),
        (
            format!("{HEAD}{TEXT}data: {{\"error\":{{\"message\":\"sk-secret\"}}}}\n\n"),
            "an error in the middle",
        ),
        ("SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(), "no HTTP"),
        (String::new(), "broke off"),
    ] {
        let server = server(Does::Sends(sent.clone()), 2).await;
        let error = all(&server.client).await.unwrap_err().to_string();
        assert!(
            error.contains(why) && !error.contains("secret"),
            "{sent}: {error}"
        );
    }
}

/// On a clock that jumps: nobody waits for these minutes.
#[tokio::test(start_paused = true)]
async fn each_phase_has_its_time_and_silence_with_comments_is_silence() {
    for (sent, phase) in [
        (String::new(), Phase::Status),
        (HEAD.to_owned(), Phase::FirstText),
        (format!("{HEAD}: still here\n\n"), Phase::FirstText),
        (format!("{HEAD}{THOUGHT}"), Phase::Text),
        (format!("{HEAD}{TEXT}"), Phase::Text),
    ] {
        let server = server(Does::Hangs(sent.clone()), 2).await;
        let began = tokio::time::Instant::now();
        assert_eq!(
            all(&server.client).await,
            Err(UpstreamError::Silent(phase)),
            "{sent}"
        );
        let took = began.elapsed();
        assert!(
            took >= phase.limit(FIRST_TEXT) && took < phase.limit(FIRST_TEXT) + Duration::from_secs(1),
            "{phase}: {took:?}"
        );
    }
}

#[tokio::test]
async fn one_that_fails_is_left_alone_and_one_that_only_refuses_a_request_is_not() {
    let ill = server(
        Does::Sends("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".into()),
        2,
    )
    .await;
    for _ in 0..3 {
        assert!(matches!(
            all(&ill.client).await,
            Err(UpstreamError::Refused { status: 503, .. })
        ));
    }
    assert!(matches!(all(&ill.client).await, Err(UpstreamError::LeftAlone(_))));
    // One that begins every time, and never ends.
    let flaky = server(Does::Sends(format!("{HEAD}{TEXT}")), 2).await;
    for _ in 0..3 {
        assert_eq!(all(&flaky.client).await, Err(UpstreamError::BrokeOff));
    }
    assert!(matches!(
        all(&flaky.client).await,
        Err(UpstreamError::LeftAlone(_))
    ));
    let busy = "HTTP/1.1 429 No\r\nretry-after: 40\r\ncontent-length: 0\r\n\r\n";
    let busy = server(Does::Sends(busy.into()), 2).await;
    assert!(all(&busy.client).await.is_err());
    match all(&busy.client).await {
        Err(UpstreamError::NoRoom(left)) => assert!(left > Duration::from_secs(38), "{left:?}"),
        other => panic!("{other:?}"),
    }
    let strict = server(
        Does::Sends("HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n".into()),
        2,
    )
    .await;
    for _ in 0..9 {
        assert!(matches!(
            all(&strict.client).await,
            Err(UpstreamError::Refused { status: 400, .. })
        ));
    }
}

#[tokio::test]
async fn no_more_answers_are_under_way_than_may_be_and_one_that_is_dropped_frees_its_place() {
    let server = server(Does::Hangs(format!("{HEAD}{TEXT}")), 1).await;
    let mut answer = ask(&server.client).await.unwrap();
    assert_eq!(answer.next().await, Ok(Some(Piece::Text("Apples".into()))));
    assert!(matches!(ask(&server.client).await, Err(UpstreamError::Busy(1))));
    drop(answer);
    assert!(ask(&server.client).await.is_ok());
}

#[tokio::test]
async fn nobody_there_is_not_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let address = ServerAddress {
        tls: false,
        host: "127.0.0.1".into(),
        port,
        base: String::new(),
    };
    let client = Client::new(Settings {
        address,
        key: None,
        parallel: 1,
        rate: Rate::default(),
        first_text: FIRST_TEXT,
        left_alone: true,
        authorities: None,
        max_tokens_field: "max_tokens".into(),
    });
    assert!(matches!(
        all(&client.unwrap()).await,
        Err(UpstreamError::Unreachable(_))
    ));
}
