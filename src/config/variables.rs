//! Every variable, declared once: its name, its default and what it means. The README table is made from this.

use serde::Deserialize;

use crate::secret::Secret;

/// How a variable is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shown in messages.
    Plain,
    /// Never shown; can be given as a file with `_FILE` appended to its name.
    Secret,
    /// The daemon's, without meaning for a single pass: accepted with a notice.
    Meaningless,
}

/// One declared variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name in lower case, as envy reads it.
    field: &'static str,
    /// How it is treated.
    pub kind: Kind,
    /// What applies when it is not set.
    pub default: Option<&'static str>,
    /// What it means, in Markdown.
    pub doc: &'static str,
}

impl Variable {
    /// The name of the environment variable.
    #[must_use]
    pub fn name(&self) -> String {
        self.field.to_ascii_uppercase()
    }
}

macro_rules! variables {
    ($($field:ident: $kind:ident $(= $default:literal)?, $doc:literal;)+) => {
        /// All declared variables, in the order of the documentation.
        pub const VARIABLES: &[Variable] = &[$(Variable {
            field: stringify!($field),
            kind: Kind::$kind,
            default: variables!(@default $($default)?),
            doc: $doc,
        }),+];

        /// The variables as texts, secrets as such from here on. `None`: not set, or empty.
        #[derive(Deserialize, Default)]
        #[serde(default)]
        #[expect(non_snake_case, missing_docs, reason = "fields are the variables' names; `__` is the daemon's separator")]
        pub struct Raw {
            $(pub $field: Option<variables!(@type $kind)>,)+
        }

        impl Raw {
            /// Takes empty texts as not set and fills in the declared defaults.
            pub(super) fn with_defaults(mut self) -> Self {
                $(
                    self.$field = self.$field.filter(|text| !variables!(@text $kind text).trim().is_empty());
                    $(if self.$field.is_none() {
                        self.$field = Some($default.to_owned());
                    })?
                )+
                self
            }
        }
    };
    (@type Secret) => { Secret };
    (@type $kind:ident) => { String };
    (@text Secret $text:ident) => { $text.expose() };
    (@text $kind:ident $text:ident) => { $text };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}

variables! {
    manager__id: Plain, "Identity of this manager, and the value of the `opencti-manager` label of everything it owns. Letters, digits, `-`, `_`, `.`, at most 63. Must never change: OpenCTI accepts one manager only. Required.";
    manager__name: Plain = "XTM reconcile", "Name of this manager as the platform shows it, at least 2 characters.";
    manager__credentials_key: Secret, "RSA private key, PEM (PKCS#8 or PKCS#1), 2048 bits or more. One of this, its `_FILE` form and the next is required.";
    manager__credentials_key_filepath: Plain, "Path of the same key in a file; the daemon's name for the `_FILE` form. Wins over `MANAGER__CREDENTIALS_KEY`.";
    manager__pass_deadline: Plain = "600", "Seconds after which a pass starts nothing new, finishes what runs and reports.";
    manager__concurrency: Plain = "8", "Connectors that are worked on at the same time, 1 to 64.";
    manager__max_removals_percent: Plain = "50", "Largest share of three or more owned connectors that one pass may remove.";
    manager__allow_prune: Plain = "false", "`true` removes whatever is not listed, whatever the share; the same as `--allow-prune`.";
    manager__reboot_loop__window: Plain = "300", "Seconds over which restarts are judged.";
    manager__reboot_loop__limit: Plain = "3", "More restarts than this within the window are a reboot loop.";
    manager__reboot_loop__action: Plain = "report", "`report`, or `stop`: stop the connector and hold it until its configuration changes or it is stopped and started again.";
    manager__logs_tail: Plain = "100", "Last lines of each connector's log that are pushed to the platform, 0 to 10000; 0 pushes none.";
    manager__logger__level: Plain = "info", "`trace`, `debug`, `info`, `warn` or `error`. `RUST_LOG` wins.";
    manager__logger__format: Plain, "`json` or `pretty`. Default: `pretty` on a terminal, `json` elsewhere.";
    manager__logger__directory: Meaningless, "There is no log file: logs go to standard error.";
    manager__logger__console: Meaningless, "Logs always go to standard error.";
    manager__execute_schedule: Meaningless, "The period is that of whatever runs the job.";
    manager__ping_alive_schedule: Meaningless, "Each pass is a sign of life; OpenCTI shows a manager inactive after 5 minutes without one.";
    manager__debug__show_env_vars: Meaningless, "Values of variables are never logged.";
    manager__debug__show_sensitive_env_vars: Meaningless, "Values of variables are never logged.";
    composer_env: Meaningless, "Name the files to read with `--config` instead.";
    opencti__enable: Plain = "true", "`false` switches OpenCTI off.";
    opencti__url: Plain, "URL of OpenCTI, with its base path if it has one; also given to the connectors as `OPENCTI_URL`. Required.";
    opencti__token: Secret, "Token of a user with the capabilities `CONNECTORAPI`, `SETTINGS_SETACCESSES` and `MODULES`. Required.";
    opencti__unsecured_certificate: Plain = "false", "`true` accepts any certificate of the platform. Prefer `OPENCTI__CA`.";
    opencti__ca: Plain, "Private CA of the platform: paths or PEM texts, comma-separated or a JSON list. Given, it alone is trusted.";
    opencti__request_timeout: Plain = "30", "Seconds that one request may take.";
    opencti__connect_timeout: Plain = "10", "Seconds to reach the platform.";
    opencti__pull_timeout: Plain = "120", "Seconds to wait for the list of connectors, which OpenCTI may hold back for 90.";
    opencti__logs_schedule: Meaningless, "Logs are pushed in every pass.";
    opencti__with_proxy: Plain = "false", "`true` reaches the platform through the proxy below and gives it to the connectors.";
    opencti__http_proxy: Secret, "Proxy for `http`; it must allow CONNECT to the platform's port. Default: `HTTP_PROXY` of the process.";
    opencti__https_proxy: Secret, "Proxy for `https`. Default: `HTTPS_PROXY` of the process.";
    opencti__no_proxy: Plain, "Hosts that are reached directly, comma-separated: names, which stand for what is below them as well, and addresses, no networks or ports. Default: `NO_PROXY` of the process.";
    opencti__https_proxy_ca: Plain, "CA of the proxy: paths or PEM texts, comma-separated or a JSON list. Copied into each connector's container, and trusted for the platform beside the public CAs or `OPENCTI__CA`.";
    opencti__https_proxy_reject_unauthorized: Plain = "true", "`false` gives the connectors `NODE_TLS_REJECT_UNAUTHORIZED=0`; Python connectors ignore it.";
    opencti__daemon__selector: Plain = "kubernetes", "Where connectors run. This version supports `kubernetes` and `docker`.";
    opencti__daemon__registry__server: Plain, "Registry that is put before the images that name none.";
    opencti__daemon__registry__username: Plain, "User of that registry; without a server, of Docker Hub.";
    opencti__daemon__registry__password: Secret, "Password of that user.";
    opencti__daemon__registry__email: Plain, "E-mail address of that user, where a registry asks for one.";
    opencti__daemon__docker__image_pull_policy: Plain, "`Always`, `IfNotPresent` or `Never`. Default: `Always` for the tags `latest` and `rolling` and for none, `IfNotPresent` otherwise.";
    opencti__daemon__docker__restart_policy: Plain = "unless-stopped", "`no`, `always`, `unless-stopped`, `on-failure` or `on-failure:N`. With `no` a reboot loop shows only from one pass to the next. Like all settings of the containers it reaches those that exist at their next refresh.";
    opencti__daemon__docker__memory_limit: Plain, "Memory limit of each connector: bytes, or with `k`, `m`, `g`.";
    opencti__daemon__docker__cpu_limit: Plain, "CPU limit of each connector in cores, such as `0.5`.";
    opencti__daemon__docker__network_mode: Plain, "Network of the containers. Default: the engine's.";
    opencti__daemon__docker__extra_hosts: Plain, "List of `host:address`.";
    opencti__daemon__docker__dns: Plain, "List of DNS servers.";
    opencti__daemon__docker__dns_search: Plain, "List of DNS search domains.";
    opencti__daemon__docker__privileged: Plain, "`true` runs the containers privileged.";
    opencti__daemon__docker__cap_add: Plain, "List of kernel capabilities to add.";
    opencti__daemon__docker__cap_drop: Plain, "List of kernel capabilities to drop.";
    opencti__daemon__docker__security_opt: Plain, "List of security options.";
    opencti__daemon__docker__userns_mode: Plain, "User namespace mode.";
    opencti__daemon__docker__pid_mode: Plain, "PID namespace mode.";
    opencti__daemon__docker__ipc_mode: Plain, "IPC namespace mode.";
    opencti__daemon__docker__uts_mode: Plain, "UTS namespace mode.";
    opencti__daemon__docker__runtime: Plain, "OCI runtime.";
    opencti__daemon__docker__shm_size: Plain, "Size of `/dev/shm`: bytes, or with `k`, `m`, `g`.";
    opencti__daemon__docker__sysctls: Plain, "Map `name=value`, comma-separated or a JSON object.";
    opencti__daemon__docker__ulimits: Plain, "List of `name=soft:hard`, comma-separated, or a JSON list of `{name, soft, hard}`.";
    opencti__daemon__kubernetes__namespace: Plain, "Namespace of the connectors. Default: that of the pod this runs in, or of the kubeconfig's context.";
    opencti__daemon__kubernetes__context: Plain, "Context of the kubeconfig. Default: its current one.";
    opencti__daemon__kubernetes__image_pull_policy: Plain, "`Always`, `IfNotPresent` or `Never`. Default: the base deployment's, else `IfNotPresent`.";
    opencti__daemon__kubernetes__image_pull_secrets: Plain, "List of existing pull secrets in that namespace. With `OPENCTI__DAEMON__REGISTRY__USERNAME` one is made besides.";
    opencti__daemon__kubernetes__image_resources: Plain, "Resources of every connector, JSON as in a pod: `{\"limits\":{\"memory\":\"1Gi\"}}`. Wins over the base deployment's.";
    opencti__daemon__kubernetes__base_deployment: Plain, "A Deployment that is merged under each of ours, JSON; in a `--config` file a mapping. A container without a name, or named `connector`, gives what every connector's container gets; others are added beside it.";
    opencti__daemon__kubernetes__base_deployment_json: Plain, "The same; wins over it.";
    kubeconfig: Plain, "Kubeconfig files, separated by colons. Default: the service account of the pod this runs in, else `~/.kube/config`.";
    kubernetes_service_host: Plain, "Set by Kubernetes in every pod: the API server.";
    kubernetes_service_port: Plain, "Set by Kubernetes in every pod: its port.";
    home: Plain, "Where `.kube/config` is looked for.";
    docker_host: Plain = "unix:///var/run/docker.sock", "Docker engine: `unix://PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`.";
    docker_tls_verify: Plain, "Any value: use TLS with the certificates of `DOCKER_CERT_PATH`.";
    docker_cert_path: Plain, "Folder with `ca.pem`, `cert.pem` and `key.pem`.";
    openaev__enable: Plain = "false", "OpenAEV is not supported by this version: `true` is refused.";
    http_proxy: Secret, "Default of `OPENCTI__HTTP_PROXY`.";
    https_proxy: Secret, "Default of `OPENCTI__HTTPS_PROXY`.";
    no_proxy: Plain, "Default of `OPENCTI__NO_PROXY`.";
    rust_log: Plain, "Log filter in tracing's syntax; wins over `MANAGER__LOGGER__LEVEL`.";
}

/// Prefixes of the daemon's keys for platforms and orchestrators that this pass does not use.
pub const OTHER_PREFIXES: &[&str] = &["OPENAEV__", "OPENCTI__DAEMON__PORTAINER__", "OPENCTI__DAEMON__SWARM__"];

/// The declared variable of this name.
#[must_use]
pub fn declared(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.field.eq_ignore_ascii_case(name))
}

/// The README's table of variables, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| variable | default | meaning |\n|---|---|---|\n");
    for variable in VARIABLES {
        let default = match (variable.kind, variable.default) {
            (Kind::Meaningless, _) => "*no meaning for a single pass*".to_owned(),
            (_, Some(default)) => format!("`{default}`"),
            (_, None) => String::new(),
        };
        let file = if variable.kind == Kind::Secret { " (secret)" } else { "" };
        text.push_str(&format!("| `{}`{file} | {default} | {} |\n", variable.name(), variable.doc));
    }
    text
}
