package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/internal/cdi"
)

// The defaults of where things are.
const (
	defaultRoot   = "/var/lib/gantry"
	defaultState  = "/run/gantry"
	defaultConfig = "/etc/gantry/gantryd.toml"
)

// config is gantryd.toml. docs/gantryd.toml explains every key; an unknown one is an error.
type config struct {
	Root        string                    `toml:"root"`
	State       string                    `toml:"state"`
	Listen      []string                  `toml:"listen"`
	LogLevel    string                    `toml:"log_level"`
	Snapshotter string                    `toml:"snapshotter"`
	Slots       int                       `toml:"slots"` // shims started ahead
	CDI         []string                  `toml:"cdi_dirs"`
	TLS         tlsConfig                 `toml:"tls"`
	Registries  map[string]registryConfig `toml:"registries"`
	Limits      limitsConfig              `toml:"limits"`
	Network     networkConfig             `toml:"network"`
	Plugins     map[string]pluginConfig   `toml:"plugins"`
	Runtimes    map[string]runtimeConfig  `toml:"runtimes"`
	Programs    programsConfig            `toml:"programs"`

	file string // that it was read from; "" if there is none
}

// tlsConfig names the files that a tcp:// address asks for.
type tlsConfig struct {
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// registryConfig is what is known of one registry.
type registryConfig struct {
	PlainHTTP bool `toml:"plain_http"`
}

// limitsConfig bounds what clients and containers may take.
type limitsConfig struct {
	Downloads   int    `toml:"downloads"`    // layers of one pull at a time
	PluginCalls int    `toml:"plugin_calls"` // under way in one plugin
	LogMaxSize  string `toml:"log_max_size"` // of one segment of a container's log
	LogMaxFiles int    `toml:"log_max_files"`
}

// networkConfig is for the default network.
type networkConfig struct {
	Bridge string `toml:"bridge"`
	Subnet string `toml:"subnet"`
	MTU    int    `toml:"mtu"`
}

// pluginConfig is one driver process, by "family/name".
type pluginConfig struct {
	Path    string         `toml:"path"`
	SHA256  string         `toml:"sha256"`
	Options map[string]any `toml:"options"`
}

// runtimeConfig is one OCI runtime, by the name that containers ask for it by.
type runtimeConfig struct {
	Path string   `toml:"path"`
	Args []string `toml:"args"` // before every verb
}

// programsConfig says where our other programs are; they stand beside gantryd by default.
type programsConfig struct {
	Shim   string `toml:"shim"`
	Plugin string `toml:"plugin"`
}

func defaults() *config {
	return &config{
		Root: defaultRoot, State: defaultState, LogLevel: "info", Snapshotter: "overlay", Slots: 2, CDI: cdi.Usual(),
		Limits: limitsConfig{Downloads: 4, PluginCalls: 128, LogMaxSize: "10m", LogMaxFiles: 3},
	}
}

// readConfig reads the file at path over the defaults. The default file need not be there.
func readConfig(path string) (*config, error) {
	c := defaults()
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && path == defaultConfig {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := parseConfig(raw, c); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	c.file = path
	return c, nil
}

// parseConfig reads raw over c; what is wrong is told with its line.
func parseConfig(raw []byte, c *config) error {
	err := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var errs []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			errs = append(errs, fmt.Errorf("line %d: key %q is not known", line, strings.Join(e.Key(), ".")))
		}
		return errors.Join(errs...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return fmt.Errorf("line %d, column %d: %s", line, column, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return err
}

var (
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	pluginPattern = regexp.MustCompile(`^(snapshotter|network|volume)/[a-z0-9][a-z0-9_-]{0,31}$`)
	bridgePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)
)

// wrong gathers what is wrong with a configuration, so that all of it is told at once.
type wrong []error

func (w *wrong) add(err error) {
	if err != nil {
		*w = append(*w, err)
	}
}

func (w *wrong) say(format string, args ...any) { w.add(fmt.Errorf(format, args...)) }

// within wants n to be between least and most.
func (w *wrong) within(key string, n, least, most int) {
	if n < least || n > most {
		w.say("%s %d: between %d and %d", key, n, least, most)
	}
}

// check says everything that is wrong with c, whether or not the machine could serve it.
func (c *config) check() error {
	var w wrong
	for _, dir := range c.CDI {
		if !filepath.IsAbs(dir) {
			w.say("cdi_dirs %q: write an absolute path", dir)
		}
	}
	for name, dir := range map[string]string{"root": c.Root, "state": c.State} {
		if !filepath.IsAbs(dir) || strings.ContainsAny(dir, ":,\\\n") {
			w.say("%s %q: write an absolute path without colon, comma, backslash or newline (overlayfs could not name what is below it)", name, dir)
		}
	}
	if filepath.Clean(c.Root) == filepath.Clean(c.State) {
		w.say("root and state are both %q: one survives reboots and the other must not", c.Root)
	}
	for _, l := range c.Listen {
		w.add(checkAddress(l, c.TLS))
	}
	_, err := c.level()
	w.add(err)
	_, err = c.logMaxBytes()
	w.add(err)
	w.within("slots", c.Slots, 0, 64)
	w.within("limits.downloads", c.Limits.Downloads, 1, 64)
	w.within("limits.plugin_calls", c.Limits.PluginCalls, 1, 10000)
	w.within("limits.log_max_files", c.Limits.LogMaxFiles, 1, 1000)
	for name, p := range c.Plugins {
		p.check(name, &w)
	}
	w.add(checkRuntimes(c.Runtimes))
	for host := range c.Registries {
		if host == "" || strings.ContainsAny(host, "/ @") {
			w.say("registries.%q: write a host, or host:port", host)
		}
	}
	c.Network.check(&w)
	return errors.Join(w...)
}

func (p *pluginConfig) check(name string, w *wrong) {
	if !pluginPattern.MatchString(name) {
		w.say("plugins.%q: write snapshotter/NAME, network/NAME or volume/NAME", name)
	}
	if p.SHA256 != "" && !digestPattern.MatchString(p.SHA256) {
		w.say("plugins.%q: sha256 is no checksum (64 hexadecimal digits)", name)
	}
	if p.Path != "" && !filepath.IsAbs(p.Path) {
		w.say("plugins.%q: path %q is not absolute", name, p.Path)
	}
}

func (n *networkConfig) check(w *wrong) {
	if n.Bridge != "" && !bridgePattern.MatchString(n.Bridge) {
		w.say("network.bridge %q: no name for a link (up to 15 letters, digits and .-_)", n.Bridge)
	}
	if n.Subnet != "" {
		if _, _, err := net.ParseCIDR(n.Subnet); err != nil {
			w.say("network.subnet %q: no subnet; write 10.20.30.0/24", n.Subnet)
		}
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		w.say("network.mtu %d: between 68 and 65535, or 0 for the uplink's", n.MTU)
	}
}

// checkAddress refuses what could not be served safely.
func checkAddress(l string, t tlsConfig) error {
	scheme, rest, _ := strings.Cut(l, "://")
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return fmt.Errorf("listen %q: write unix:///path", l)
		}
	case "tcp":
		if _, _, err := net.SplitHostPort(rest); err != nil {
			return fmt.Errorf("listen %q: write tcp://address:port", l)
		}
		if t.CA == "" || t.Cert == "" || t.Key == "" {
			return fmt.Errorf("listen %q: whoever reaches this port would be root here; give --tls-ca, --tls-cert and --tls-key", l)
		}
	default:
		return fmt.Errorf("listen %q: unix:// and tcp:// are known", l)
	}
	return nil
}

func (c *config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("log_level %q: debug, info, warn and error are known", c.LogLevel)
	}
	return l, nil
}

// logMaxBytes is the default bound of a log segment; -1 keeps everything.
func (c *config) logMaxBytes() (int64, error) {
	if c.Limits.LogMaxSize == "-1" {
		return -1, nil
	}
	n, err := units.RAMInBytes(c.Limits.LogMaxSize)
	if err != nil || n < 1024 {
		return 0, fmt.Errorf("limits.log_max_size %q: write at least 1k, as in 10m, or -1 to keep everything", c.Limits.LogMaxSize)
	}
	return n, nil
}

// instance names what is this daemon's in the kernel, so that several live side by side.
func (c *config) instance() string {
	if filepath.Clean(c.Root) == defaultRoot {
		return "gantry"
	}
	sum := sha256.Sum256([]byte(filepath.Clean(c.Root)))
	return "gantry-" + hex.EncodeToString(sum[:4])
}

// bridge is the name of the default network's bridge.
func (c *config) bridge() string {
	if c.Network.Bridge != "" {
		return c.Network.Bridge
	}
	if suffix, ok := strings.CutPrefix(c.instance(), "gantry-"); ok {
		return "gy" + suffix + "0"
	}
	return "gantry0"
}

// pluginOptions is a plugin's own section, as the JSON that it is handed.
func (c *config) pluginOptions(name string, ours map[string]any) (json.RawMessage, error) {
	all := map[string]any{}
	for k, v := range ours {
		all[k] = v
	}
	for k, v := range c.Plugins[name].Options {
		all[k] = v
	}
	return json.Marshal(all)
}
