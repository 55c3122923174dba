// Command gantryd is the composition root: it builds the parts, joins them, recovers, serves.
//
//	main.go     flags, signals, the order of things
//	config.go   gantryd.toml
//	listen.go   sockets
//	wire.go     which part supplies what another needs
//	recover.go  the daemon's life: what the last one left, serving, reloading, ending
//	runtimes.go which OCI runtimes there are
//	warnings.go what this host lacks, and what that costs
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/sentence"
	"github.com/gantryd/gantry/internal/unpack"
)

// version is set by the linker.
var version = "dev"

func main() {
	unpack.Main() // does not return in the confined child that unpacks a layer
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options is the command line.
type options struct {
	config      *config
	path        string
	checkConfig bool
	version     bool
	flags       *pflag.FlagSet
	over        config // what the flags say, over the file
}

func parseFlags(args []string, out io.Writer) (*options, error) {
	o := &options{flags: pflag.NewFlagSet("gantryd", pflag.ContinueOnError)}
	fs := o.flags
	fs.SetOutput(out)
	fs.SortFlags = false
	fs.StringVar(&o.path, "config", defaultConfig, "configuration file")
	fs.StringVar(&o.over.Root, "root", defaultRoot, "directory for what survives reboots")
	fs.StringVar(&o.over.State, "state", defaultState, "directory for what does not")
	fs.StringArrayVar(&o.over.Listen, "listen", nil, "address to serve: unix:///path, or tcp://address:port with the --tls flags; may be repeated (default unix://STATE/gantry.sock)")
	fs.StringVar(&o.over.TLS.CA, "tls-ca", "", "file with the certificate of who signs clients'")
	fs.StringVar(&o.over.TLS.Cert, "tls-cert", "", "file with this daemon's certificate")
	fs.StringVar(&o.over.TLS.Key, "tls-key", "", "file with this daemon's key")
	fs.StringVar(&o.over.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.over.Snapshotter, "snapshotter", "overlay", "default storage driver")
	fs.BoolVar(&o.checkConfig, "check-config", false, "say whether the configuration is right, and end")
	fs.BoolVar(&o.version, "version", false, "show the version, and end")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q: gantryd takes flags only; see gantryd --help", fs.Arg(0))
	}
	return o, nil
}

// load reads the file and lays the flags over it.
func (o *options) load() (*config, error) {
	c, err := readConfig(o.path)
	if err != nil {
		return nil, err
	}
	for name, lay := range map[string]func(){
		"root":        func() { c.Root = o.over.Root },
		"state":       func() { c.State = o.over.State },
		"listen":      func() { c.Listen = o.over.Listen },
		"tls-ca":      func() { c.TLS.CA = o.over.TLS.CA },
		"tls-cert":    func() { c.TLS.Cert = o.over.TLS.Cert },
		"tls-key":     func() { c.TLS.Key = o.over.TLS.Key },
		"log-level":   func() { c.LogLevel = o.over.LogLevel },
		"snapshotter": func() { c.Snapshotter = o.over.Snapshotter },
	} {
		if o.flags.Changed(name) {
			lay()
		}
	}
	if len(c.Listen) == 0 {
		c.Listen = []string{"unix://" + c.State + "/gantry.sock"}
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// words says errors to the log without what only names their class.
func words(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(sentence.Of(err))
	}
	return a
}

// run is main with its streams and its exit code: 0 done, 1 could not, 2 wrong flags or configuration.
func run(args []string, out, errOut io.Writer) int {
	o, err := parseFlags(args, errOut)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintln(errOut, "gantryd:", err)
		return 2
	}
	if o.version {
		_, _ = fmt.Fprintln(out, "gantryd", version)
		return 0
	}
	if o.config, err = o.load(); err != nil {
		_, _ = fmt.Fprintln(errOut, "gantryd:", err)
		return 2
	}
	if o.checkConfig {
		_, _ = fmt.Fprintln(out, "configuration is right")
		return 0
	}
	if os.Geteuid() != 0 {
		_, _ = fmt.Fprintln(errOut, "gantryd: making containers needs root: start it as root, or from its systemd unit")
		return 1
	}
	level := new(slog.LevelVar)
	l, _ := o.config.level() // check has looked at it
	level.Set(l)
	slog.SetDefault(slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level, ReplaceAttr: words})))

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	signal.Ignore(unix.SIGPIPE)
	if err := serve(ctx, o, level, hup); err != nil {
		slog.Error("gantryd ends", "err", err)
		return 1
	}
	return 0
}
