//! Requests and responses. There is one resource, `/metrics`, and it can only be read.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::format::Format;

/// A request for the metrics, in this format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted(pub(super) Format);

/// Why a request gets no metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no such resource.
    Path,
    /// Metrics can only be read.
    Method,
    /// The tunnel is about to stop.
    Stopping,
}

impl Wanted {
    /// Reads the request; its body and its other headers do not matter.
    ///
    /// # Errors
    /// If it does not ask for the metrics.
    pub(super) fn of<B>(request: &Request<B>) -> Result<Self, Refused> {
        if request.uri().path() != "/metrics" {
            return Err(Refused::Path);
        }
        if request.method() != Method::GET {
            return Err(Refused::Method);
        }
        let accepted = request.headers().get_all(ACCEPT).iter();
        let accepted: Vec<_> = accepted.filter_map(|value| value.to_str().ok()).collect();
        Ok(Self(Format::among(&accepted)))
    }
}

impl Refused {
    /// The response.
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let (code, text) = match self {
            Self::Path => (StatusCode::NOT_FOUND, "the metrics are at /metrics\n"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read: GET\n"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "the tunnel is about to stop\n"),
        };
        let mut response = with_type(text.to_owned(), "text/plain; charset=utf-8");
        *response.status_mut() = code;
        if self == Self::Method {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}

/// The response with the metrics.
pub(super) fn page(format: Format, text: String) -> Response<Full<Bytes>> {
    with_type(text, format.content_type())
}

fn with_type(text: String, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    fn asked(method: &str, uri: &str) -> Result<Wanted, Refused> {
        Wanted::of(&request(method, uri))
    }

    #[test]
    fn one_resource_that_can_only_be_read() {
        assert_eq!(asked("GET", "/metrics"), Ok(Wanted(Format::OpenMetrics)));
        assert_eq!(asked("GET", "/metrics?tunnel=x"), Ok(Wanted(Format::OpenMetrics)));
        assert_eq!(asked("GET", "http://elsewhere/metrics"), Ok(Wanted(Format::OpenMetrics)));
        for uri in ["/", "/metrics/", "/metrics/../etc/passwd", "//metrics", "/%6detrics", "*"] {
            assert_eq!(asked("GET", uri), Err(Refused::Path), "{uri}");
        }
        for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            assert_eq!(asked(method, "/metrics"), Err(Refused::Method), "{method}");
        }
    }
}
