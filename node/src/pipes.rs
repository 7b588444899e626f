//! Frames on asynchronous pipes.

use pomona_wire::{Message, WireError};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The next frame; `None` at a clean end.
pub(crate) async fn read_frame<M: Message>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<Option<M>, WireError> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(WireError::Io(error)),
    }
    let mut body = vec![0; pomona_wire::body_len::<M>(length)?];
    reader.read_exact(&mut body).await.map_err(WireError::Io)?;
    pomona_wire::decode_body(&body).map(Some)
}
