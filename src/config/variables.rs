//! Declares every variable once: its name, its default and its meaning. The README table is generated from this.
//!
//! The two platforms have the same keys under prefixes of their own. Such a key is declared without the prefix, and texts name
//! it as `P__KEY`.

use serde::Deserialize;

use crate::model::PlatformKind;
use crate::secret::Secret;

/// How a variable is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its value may stand in messages.
    Plain,
    /// Its value must not be shown. It can also be read from a file, whose path is in the variable with `_FILE` after
    /// the name.
    Secret,
    /// A variable of the daemon that has no meaning for a single pass. It is accepted with a notice.
    Meaningless,
}

/// The default of a variable that is not set.
#[derive(Debug, Clone, Copy)]
enum Fallback {
    Nothing,
    Always(&'static str),
    PerPlatform { opencti: &'static str, openaev: &'static str },
}

/// One declared variable of the process, or one key that every platform has under its own prefix.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// The name without a prefix and in lower case, as envy reads it.
    pub(super) field: &'static str,
    pub(super) kind: Kind,
    /// The only platform that has a use for this key. `None` when all have.
    pub(super) only: Option<PlatformKind>,
    fallback: Fallback,
    /// The meaning in Markdown, for the README table.
    doc: &'static str,
}

impl Variable {
    /// The name of the environment variable. `platform` is `None` for a variable of the process.
    pub(super) fn name(&self, platform: Option<PlatformKind>) -> String {
        format!("{}{}", platform.map_or("", PlatformKind::prefix), self.field.to_ascii_uppercase())
    }

    pub(super) fn default(&self, platform: Option<PlatformKind>) -> Option<&'static str> {
        match (self.fallback, platform) {
            (Fallback::Always(text), _) => Some(text),
            (Fallback::PerPlatform { opencti, .. }, Some(PlatformKind::OpenCti)) => Some(opencti),
            (Fallback::PerPlatform { openaev, .. }, Some(PlatformKind::OpenAev)) => Some(openaev),
            (Fallback::Nothing, _) | (Fallback::PerPlatform { .. }, None) => None,
        }
    }

    /// Whether a lane of this platform reads the key.
    pub(super) fn serves(&self, platform: Option<PlatformKind>) -> bool {
        self.only.is_none() || self.only == platform
    }
}

macro_rules! variables {
    ($(#[$about:meta])* $all:ident, $texts:ident;
     $($field:ident: $kind:ident $(for $only:ident)? $(= $default:literal $(/ $openaev:literal)?)?, $doc:literal;)+) => {
        /// The declared variables, in the order of the README table.
        pub(super) const $all: &[Variable] = &[$(Variable {
            field: stringify!($field),
            kind: Kind::$kind,
            only: variables!(@only $($only)?),
            fallback: variables!(@default $($default $(/ $openaev)?)?),
            doc: $doc,
        }),+];

        $(#[$about])*
        #[derive(Deserialize, Default)]
        #[serde(default)]
        #[expect(non_snake_case, missing_docs, reason = "fields are the variables' names; `__` is the daemon's separator")]
        pub struct $texts {
            $(pub $field: Option<variables!(@type $kind)>,)+
        }
    };
    (@type Secret) => { Secret };
    (@type $kind:ident) => { String };
    (@only) => { None };
    (@only $only:ident) => { Some(PlatformKind::$only) };
    (@default) => { Fallback::Nothing };
    (@default $default:literal) => { Fallback::Always($default) };
    (@default $opencti:literal / $openaev:literal) => {
        Fallback::PerPlatform { opencti: $opencti, openaev: $openaev }
    };
}

variables! {
    /// The texts of the variables of the process. `None` when a variable is not set and has no default.
    PROCESS_VARIABLES, ProcessTexts;
    manager__id: Plain, "Identity of this manager, and the value of the `opencti-manager` label of everything it owns. Letters, digits, `-`, `_`, `.`, at most 63. Must never change: OpenCTI accepts one manager only. Required.";
    manager__name: Plain = "XTM reconcile", "Name of this manager as the platform shows it, at least 2 characters.";
    manager__credentials_key: Secret, "RSA private key, PEM (PKCS#8 or PKCS#1), 2048 bits or more. One of this, its `_FILE` form and the next is required.";
    manager__credentials_key_filepath: Plain, "Path of the same key in a file; the daemon's name for the `_FILE` form. Wins over `MANAGER__CREDENTIALS_KEY`.";
    manager__accept_new_key: Plain = "false", "`true` registers a key that opens none of the values that the platform lists for this manager; the same as `--accept-new-key`. Meant for one pass, when the former key is lost or given up.";
    manager__pass_deadline: Plain = "600", "Seconds after which a pass starts nothing new, finishes what runs and reports.";
    manager__stop_budget: Plain = "20", "Seconds for everything that is left after the deadline or a signal: steps that run, looks, publishing, the record, the lock. What hangs is given up within them. 1 to 3600.";
    manager__concurrency: Plain = "8", "Connectors that are worked on at the same time, 1 to 64. With both platforms each has half of it, and one at least.";
    manager__probation: Plain = "60", "Seconds for which a refreshed connector has to stay up before what it replaced is removed, 0 to 86400. One that ends or restarts before is rolled back. 0 keeps nothing.";
    manager__settle: Plain = "5", "Seconds that a pass with refreshes waits, once for all of them, before it looks whether they still run, 0 to 60. What has failed by then is rolled back in the same pass.";
    manager__max_removals_percent: Plain = "50", "Largest share of three or more owned connectors that one pass may remove.";
    manager__allow_prune: Plain = "false", "`true` removes whatever is not listed, whatever the share; the same as `--allow-prune`.";
    manager__reboot_loop__window: Plain = "300", "Seconds over which restarts are judged.";
    manager__reboot_loop__limit: Plain = "3", "More restarts than this within the window are a reboot loop.";
    manager__reboot_loop__action: Plain = "report", "`report`, or `stop`: stop the connector and hold it until its configuration changes, it is released (`release NAME`), or a pass has seen it stopped on the platform and it is started again.";
    manager__logs_tail: Plain = "100", "Last lines of each connector's log that are pushed to the platform, 0 to 10000; 0 pushes none.";
    manager__logger__level: Plain = "info", "`trace`, `debug`, `info`, `warn` or `error`. `RUST_LOG` wins.";
    manager__logger__format: Plain, "`json` or `pretty`. Default: `pretty` on a terminal, `json` elsewhere.";
    manager__logger__directory: Meaningless, "There is no log file: logs go to standard error.";
    manager__logger__console: Meaningless, "Logs always go to standard error.";
    manager__execute_schedule: Meaningless, "The period is that of whatever runs the job.";
    manager__ping_alive_schedule: Meaningless, "Each pass is a sign of life; OpenCTI shows a manager inactive after 5 minutes without one.";
    manager__debug__show_env_vars: Meaningless, "Values of variables are never logged.";
    manager__debug__show_sensitive_env_vars: Meaningless, "Values of variables are never logged.";
    composer_env: Meaningless, "Name the files to read with `--config` instead; without that option it is a warning.";
    kubeconfig: Plain, "Kubeconfig files, separated by colons. Default: the service account of the pod this runs in, else `~/.kube/config`.";
    kubernetes_service_host: Plain, "Set by Kubernetes in every pod: the API server.";
    kubernetes_service_port: Plain, "Set by Kubernetes in every pod: its port.";
    home: Plain, "Where `.kube/config` is looked for.";
    docker_host: Plain = "unix:///var/run/docker.sock", "Docker engine: `unix://PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`.";
    docker_tls_verify: Plain, "Any value: use TLS with the certificates of `DOCKER_CERT_PATH`.";
    docker_cert_path: Plain, "Folder with `ca.pem`, `cert.pem` and `key.pem`. An engine is trusted when `ca.pem` signed its certificate; the CAs of the machine do not count.";
    http_proxy: Secret, "Default of `P__HTTP_PROXY`. Wins over `http_proxy`, unless it is empty; the same holds for the next two.";
    https_proxy: Secret, "Default of `P__HTTPS_PROXY`.";
    no_proxy: Plain, "Default of `P__NO_PROXY`.";
    xtm__xtm_one_url: Plain, "URL of XTM One. Alone it does nothing, because OpenCTI's chatbot proxy uses it too; with the token, each pass registers the platforms with XTM One.";
    xtm__xtm_one_token: Secret, "Registration token of XTM One (its `PLATFORM_REGISTRATION_TOKEN`).";
    xtm__force: Plain = "false", "`true` also registers a platform that registers itself, as OpenCTI does from 7.260306 on.";
    xtm__payload: Plain = "auto", "What a registration holds: `users` (users with keys), `intents` (neither users nor keys), or `auto`: `users` for platform versions before 7.260401 and 3.260401, `intents` from then on.";
    xtm__platform_url: Plain, "URL of OpenCTI that XTM One and its users get. Default: what OpenCTI answers, which may be an internal address.";
    xtm__license_pem: Secret, "Enterprise licence of OpenCTI, a PEM certificate, which no API of OpenCTI shows.";
    xtm__admin_api_key: Secret, "Key with which XTM One calls OpenCTI back as an administrator. Default: none is sent. `platform-token` sends the token with which this manager uses OpenCTI.";
    xtm__users_include: Plain, "Globs (`*`, `?`) on e-mail addresses, comma-separated or a JSON list: only these users get keys.";
    xtm__users_exclude: Plain, "Globs on e-mail addresses: these users get no keys. Wins over the one before.";
    xtm__service_accounts: Plain = "false", "`true` also gives keys to service accounts and to addresses that end in `.invalid`.";
    xtm__max_new_tokens: Plain = "100", "Largest number of tokens that one pass makes, 0 to 5000. The other users wait for later passes.";
    xtm__chat_web_token_secret: Plain, "Name of a Kubernetes Secret in the connectors' namespace that keeps XTM One's `chat_web_token`, under the key `chat_web_token`. That of OpenAEV gets `-openaev` after the name.";
    xtm__chat_web_token_file: Plain, "Path of a file that keeps the same, where the Secret is not set or there is no Kubernetes. That of OpenAEV gets `.openaev` after the path.";
    xtm__allow_insecure: Plain = "false", "`true` allows plain `http` to XTM One on another machine, which shows every key to the network.";
    xtm__ca: Plain, "Private CA of XTM One: paths or PEM texts, comma-separated or a JSON list. Given, it alone is trusted.";
    xtm__request_timeout: Plain = "15", "Seconds that one registration may take.";
    xtm__connect_timeout: Plain = "10", "Seconds to reach XTM One.";
    xtm__with_proxy: Plain = "false", "`true` reaches XTM One through the proxy below.";
    xtm__http_proxy: Secret, "Proxy for `http`. Default: `HTTP_PROXY` of the process.";
    xtm__https_proxy: Secret, "Proxy for `https`. Default: `HTTPS_PROXY` of the process.";
    xtm__no_proxy: Plain, "Hosts that are reached directly. Default: `NO_PROXY` of the process.";
    xtm__https_proxy_ca: Plain, "CA of the proxy, as `P__HTTPS_PROXY_CA`; trusted beside the public CAs or `XTM__CA`.";
    rust_log: Plain, "Log filter in tracing's syntax; wins over `MANAGER__LOGGER__LEVEL`.";
}

variables! {
    /// The texts of one platform's keys. `None` when a key is not set and has no default, or is of no use to that
    /// platform.
    LANE_VARIABLES, LaneTexts;
    enable: Plain = "true" / "false", "Whether this platform has a lane of its own in each pass. The values of a platform that is not enabled are not checked.";
    url: Plain, "URL of the platform, with its base path if it has one; also given to its connectors, as `OPENCTI_URL` or `OPENAEV_URL`. Required.";
    token: Secret, "Token of the manager's user. In OpenCTI it needs the capabilities `CONNECTORAPI`, `SETTINGS_SETACCESSES` and `MODULES`; in OpenAEV it must read and manage the catalogue and read the platform settings. Required.";
    tenant: Plain for OpenAev, "Tenant whose routes are used, for a token whose rights are in a tenant. Letters, digits, `-`, `_`, at most 63.";
    take_over: Plain for OpenAev = "false", "`true` lets a pass register although another composer is registered: registering evicts it without a word to it. With `false` such a pass ends instead.";
    unsecured_certificate: Plain = "false", "`true` accepts any certificate of the platform. Prefer `P__CA`.";
    ca: Plain, "Private CA of the platform: paths or PEM texts, comma-separated or a JSON list. Given, it alone is trusted.";
    request_timeout: Plain = "30", "Seconds that one request may take.";
    connect_timeout: Plain = "10", "Seconds to reach the platform.";
    pull_timeout: Plain = "120", "Seconds to wait for the list of connectors, which OpenCTI may hold back for 90.";
    logs_schedule: Meaningless, "Logs are pushed in every pass.";
    with_proxy: Plain = "false", "`true` reaches the platform through the proxy below and gives it to the connectors.";
    http_proxy: Secret, "Proxy for `http`; it must allow CONNECT to the platform's port. Default: `HTTP_PROXY` of the process.";
    https_proxy: Secret, "Proxy for `https`. Default: `HTTPS_PROXY` of the process.";
    no_proxy: Plain, "Hosts that are reached directly, comma-separated: names, which stand for what is below them as well, and addresses, no networks or ports. Default: `NO_PROXY` of the process.";
    https_proxy_ca: Plain, "CA of the proxy: paths or PEM texts, comma-separated or a JSON list. Copied into each connector's container, and trusted for the platform beside the public CAs or `P__CA`.";
    https_proxy_reject_unauthorized: Plain = "true", "`false` gives the connectors `NODE_TLS_REJECT_UNAUTHORIZED=0`; Python connectors ignore it.";
    daemon__selector: Plain, "Where connectors run: `kubernetes` or `docker`. Default: `kubernetes`, where `KUBECONFIG` or the pod this runs in names the cluster; required where `~/.kube/config` alone does.";
    daemon__registry__server: Plain, "Registry that is put before the images that name none.";
    daemon__registry__username: Plain, "User of that registry; without a server, of Docker Hub.";
    daemon__registry__password: Secret, "Password of that user.";
    daemon__registry__email: Plain, "E-mail address of that user, where a registry asks for one.";
    daemon__docker__image_pull_policy: Plain, "`Always`, `IfNotPresent` or `Never`. Default: `Always` for the tags `latest` and `rolling` and for none, `IfNotPresent` otherwise.";
    daemon__docker__restart_policy: Plain = "unless-stopped", "`no`, `unless-stopped`, `on-failure` or `on-failure:N`; `always` counts as `unless-stopped`. With `no` a reboot loop shows only from one pass to the next. A container that runs without a policy gets it in place; one that has another keeps that until its next refresh.";
    daemon__docker__memory_limit: Plain, "Memory limit of each connector: bytes, or with `k`, `m`, `g`.";
    daemon__docker__cpu_limit: Plain, "CPU limit of each connector in cores, such as `0.5`.";
    daemon__docker__network_mode: Plain, "Network of the containers. Default: the engine's.";
    daemon__docker__extra_hosts: Plain, "List of `host:address`.";
    daemon__docker__dns: Plain, "List of DNS servers.";
    daemon__docker__dns_search: Plain, "List of DNS search domains.";
    daemon__docker__privileged: Plain, "`true` runs the containers privileged.";
    daemon__docker__cap_add: Plain, "List of kernel capabilities to add.";
    daemon__docker__cap_drop: Plain, "List of kernel capabilities to drop.";
    daemon__docker__security_opt: Plain, "List of security options.";
    daemon__docker__userns_mode: Plain, "User namespace mode.";
    daemon__docker__pid_mode: Plain, "PID namespace mode.";
    daemon__docker__ipc_mode: Plain, "IPC namespace mode.";
    daemon__docker__uts_mode: Plain, "UTS namespace mode.";
    daemon__docker__runtime: Plain, "OCI runtime.";
    daemon__docker__shm_size: Plain, "Size of `/dev/shm`: bytes, or with `k`, `m`, `g`.";
    daemon__docker__sysctls: Plain, "Map `name=value`, comma-separated or a JSON object.";
    daemon__docker__ulimits: Plain, "List of `name=soft:hard`, comma-separated, or a JSON list of `{name, soft, hard}`.";
    daemon__kubernetes__namespace: Plain, "Namespace of the connectors. Default: that of the pod this runs in, or of the kubeconfig's context.";
    daemon__kubernetes__context: Plain, "Context of the kubeconfig. Default: its current one.";
    daemon__kubernetes__image_pull_policy: Plain, "`Always`, `IfNotPresent` or `Never`. Default: the base deployment's, else `IfNotPresent`.";
    daemon__kubernetes__image_pull_secrets: Plain, "List of existing pull secrets in that namespace. With `P__DAEMON__REGISTRY__USERNAME` one is made besides.";
    daemon__kubernetes__image_resources: Plain, "Resources of every connector, JSON as in a pod: `{\"limits\":{\"memory\":\"1Gi\"}}`. Wins over the base deployment's.";
    daemon__kubernetes__base_deployment: Plain, "A Deployment that is merged under each of ours, JSON; in a `--config` file a mapping. A container without a name, or named `connector`, gives what every connector's container gets; others are added beside it.";
    daemon__kubernetes__base_deployment_json: Plain, "The same; wins over it.";
}

/// The daemon's groups of keys for orchestrators that this version does not support.
const IGNORED_GROUPS: [&str; 2] = ["DAEMON__PORTAINER__", "DAEMON__SWARM__"];

/// The platform whose prefix the name has, and the key without the prefix. `None` for a variable of the process.
pub(super) fn split_prefix(name: &str) -> Option<(PlatformKind, &str)> {
    PlatformKind::ALL.into_iter().find_map(|platform| Some((platform, name.strip_prefix(platform.prefix())?)))
}

/// The declared variable of this name. A platform's key is found under either prefix.
#[must_use]
pub fn declared(name: &str) -> Option<&'static Variable> {
    let name = name.to_ascii_uppercase();
    let (variables, key) = match split_prefix(&name) {
        Some((_, key)) => (LANE_VARIABLES, key),
        None => (PROCESS_VARIABLES, name.as_str()),
    };
    variables.iter().find(|variable| variable.field.eq_ignore_ascii_case(key))
}

/// Whether the daemon uses this name for an orchestrator that this version does not support.
pub(super) fn is_ignored(name: &str) -> bool {
    split_prefix(name).is_some_and(|(_, key)| IGNORED_GROUPS.iter().any(|group| key.starts_with(group)))
}

/// The name of every variable that can be set.
pub(super) fn names() -> impl Iterator<Item = String> {
    let lanes = PlatformKind::ALL.map(Some).into_iter();
    let lanes = lanes.flat_map(|platform| LANE_VARIABLES.iter().map(move |variable| variable.name(platform)));
    PROCESS_VARIABLES.iter().map(|variable| variable.name(None)).chain(lanes)
}

/// Renders the README's table of variables in Markdown.
#[must_use]
pub fn markdown() -> String {
    let [opencti, openaev] = PlatformKind::ALL.map(|platform| format!("`{}`", platform.prefix()));
    let mut text = format!(
        "`P__` stands for either prefix, {opencti} or {openaev}: each platform has the same keys, and neither reads the other's.\n\n\
         | variable | default | meaning |\n|---|---|---|\n"
    );
    for variable in PROCESS_VARIABLES {
        text.push_str(&row(variable, &[None]));
    }
    for variable in LANE_VARIABLES {
        text.push_str(&row(variable, &PlatformKind::ALL.map(Some)));
    }
    text
}

fn row(variable: &Variable, platforms: &[Option<PlatformKind>]) -> String {
    let names: Vec<String> = platforms.iter().map(|platform| format!("`{}`", variable.name(*platform))).collect();
    let mut defaults: Vec<String> =
        platforms.iter().filter_map(|platform| Some(format!("`{}`", variable.default(*platform)?))).collect();
    defaults.dedup();
    let default = match variable.kind {
        Kind::Meaningless => "*no meaning for a single pass*".to_owned(),
        Kind::Plain | Kind::Secret => defaults.join(" / "),
    };
    let secret = if variable.kind == Kind::Secret { " (secret)" } else { "" };
    let only =
        variable.only.map_or_else(String::new, |platform| format!("{} alone has a use for it. ", platform.title()));
    format!("| {}{secret} | {default} | {only}{} |\n", names.join("<br>"), variable.doc)
}
