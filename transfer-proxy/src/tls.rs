//! TLS raw public keys (RFC 7250): one Ed25519 key per end and transfer, each pinned by the other.
//!
//! No certificate, no name and no ticket is ever sent. The provider is passed explicitly, so that
//! nothing depends on a default of the process.

use std::fmt;
use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use model::{PublicKey, SecretKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use zeroize::Zeroizing;

/// The protocol of this version. Offered beside the hint, and the only one that is selected.
pub(crate) const PROTOCOL: &[u8] = b"sojourn-transfer/2";

/// `SubjectPublicKeyInfo` of an Ed25519 key, up to the 32 bytes of the key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// PKCS #8 of an Ed25519 key, up to the 32 bytes of its seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What a dialler shows in clear so that the right key answers: `model::Token::hint`.
pub(crate) type Hint = [u8; 16];

/// Tells the key to answer a hint with.
type KeyOf = dyn Fn(&Hint) -> Option<TransferKey> + Send + Sync;

/// A transfer key in the form that TLS signs with.
pub(crate) type TransferKey = Arc<CertifiedKey>;

fn spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0].concat()
}

/// The Ed25519 key that a peer showed in place of a certificate.
pub(crate) fn shown_key(shown: &CertificateDer<'_>) -> Option<PublicKey> {
    PublicKey::from_slice(shown.as_ref().strip_prefix(&SPKI_PREFIX)?)
}

/// Makes a key ready to sign handshakes.
pub(crate) fn transfer_key(key: &SecretKey) -> TransferKey {
    let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
    pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(&key.seed()[..]);
    let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))
        .expect("every 32 bytes are the seed of an Ed25519 key");
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(&key.public()))], signer))
}

/// The cryptography of every session; made once per proxy.
#[derive(Clone)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    server: ServerConfig,
}

impl Tls {
    pub(crate) fn new() -> Self {
        let provider = certs::provider();
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(Arc::new(AnyTransferKey(provider.clone())))
            .with_cert_resolver(Arc::new(NoKey));
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A session is never resumed: each shows its keys and its token anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Self { provider, server }
    }

    /// Random bytes from the provider.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.provider.secure_random.fill(&mut bytes).expect("the system has random bytes");
        bytes
    }

    /// The listening end before it is known who dials. Only its parameters of packet protection
    /// are ever used; a handshake always runs with [`Tls::answer`].
    pub(crate) fn listen(&self) -> ServerConfig {
        self.server.clone()
    }

    /// The listening end of one handshake: `key_of` tells the key to answer a hint with.
    /// The second value holds the hint once the handshake is over.
    pub(crate) fn answer(
        &self,
        key_of: impl Fn(&Hint) -> Option<TransferKey> + Send + Sync + 'static,
    ) -> (ServerConfig, Arc<OnceLock<Hint>>) {
        let hint = Arc::new(OnceLock::new());
        let mut config = self.server.clone();
        config.cert_resolver = Arc::new(KeyByHint { key_of: Box::new(key_of), hint: hint.clone() });
        (config, hint)
    }

    /// The dialling end: answers only to `peer`, and shows `key` and `hint`.
    pub(crate) fn dial(&self, key: TransferKey, peer: &PublicKey, hint: &Hint) -> ClientConfig {
        let pin = Pinned { provider: self.provider.clone(), spki: spki(peer) };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pin))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
        config.alpn_protocols = vec![PROTOCOL.to_vec(), HEXLOWER.encode(hint).into_bytes()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config
    }
}

fn verify(
    provider: &CryptoProvider,
    message: &[u8],
    shown: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(shown.as_ref()),
        signature,
        &provider.signature_verification_algorithms,
    )
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerMisbehaved::SelectedUnofferedKxGroup.into())
}

/// Accepts the one key that was agreed on for this transfer.
#[derive(Debug)]
struct Pinned {
    provider: Arc<CryptoProvider>,
    spki: Vec<u8>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.spki && intermediates.is_empty() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(&self.provider, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts whoever proves to hold the Ed25519 key that it shows. Whether it is the pinned one is
/// decided together with the token, so that every refusal looks the same.
#[derive(Debug)]
struct AnyTransferKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyTransferKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match shown_key(end_entity) {
            Some(_) if intermediates.is_empty() => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(&self.0, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Stands in the configuration that no handshake runs with.
#[derive(Debug)]
struct NoKey;

impl ResolvesServerCert for NoKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<TransferKey> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// The hint among the protocols that a dialler offers.
pub(crate) fn hint_among<'a>(mut offered: impl Iterator<Item = &'a [u8]>) -> Option<Hint> {
    offered.find_map(|name| HEXLOWER.decode(name).ok().and_then(|hint| hint.try_into().ok()))
}

/// Finds the transfer key by the hint.
struct KeyByHint {
    key_of: Box<KeyOf>,
    hint: Arc<OnceLock<Hint>>,
}

impl fmt::Debug for KeyByHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyByHint")
    }
}

impl ResolvesServerCert for KeyByHint {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<TransferKey> {
        let hint = hint_among(hello.alpn()?)?;
        (self.key_of)(self.hint.get_or_init(|| hint))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}
