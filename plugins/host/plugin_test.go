package host

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/serve"
	"github.com/gantryd/gantry/plugins/volume"
)

// This test binary is its own plugins: started with this word and a mode it does not run tests.
const asPlugin = "gantry-plugin-under-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == asPlugin {
		bePlugin(os.Args[2])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// bePlugin is main, in one of the ways in which a plugin can be good or bad.
func bePlugin(mode string) {
	d := &driver{info: plugins.Info{Family: plugins.Volume, Name: "test", Version: "1", Capabilities: []string{"word", "another"}}}
	switch mode {
	case "good":
	case "dies-at-once":
		fmt.Fprintln(os.Stderr, "something is not as I need it")
		os.Exit(3)
	case "dies-before-info":
		d.diesInInfo = true
	case "never-answers-info":
		d.hangsInInfo = true
	case "never-shakes-hands":
		select {}
	case "rubbish":
		fmt.Println("Hello, world!")
		select {}
	case "rubbish-without-end":
		for {
			fmt.Print(strings.Repeat("x", 4096))
		}
	case "half-a-line":
		fmt.Print("1|2|unix")
		select {}
	case "wrong-magic":
		h := plugins.Handshake
		h.MagicCookieValue = "something else"
		plugin.Serve(&plugin.ServeConfig{HandshakeConfig: h, GRPCServer: plugin.DefaultGRPCServer, VersionedPlugins: map[int]plugin.PluginSet{2: {}}})
	case "wrong-version":
		serveOnly(7, d)
	case "version-before":
		serveOnly(plugins.Oldest, d)
	case "wrong-family":
		d.info.Family = plugins.Network
		serveOnly(plugins.Protocol, d)
	case "wrong-name":
		d.info.Name = "other"
	case "not-gantry":
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: plugins.Handshake, GRPCServer: plugin.DefaultGRPCServer,
			VersionedPlugins: map[int]plugin.PluginSet{plugins.Protocol: {"x": &onlyServes{}}},
		})
	case "listens-elsewhere":
		fmt.Println("1|2|unix|/run/some/other.sock|grpc")
		select {}
	case "listens-on-tcp":
		fmt.Println("1|2|tcp|127.0.0.1:1234|grpc")
		select {}
	case "serves-from-another-process":
		servesFromAnother()
	case "floods-stderr":
		go func() {
			for {
				fmt.Fprintln(os.Stderr, strings.Repeat("flood ", 500))
			}
		}()
	case "child-holds-pipes":
		c := exec.Command("sleep", "30")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Start(); err != nil {
			panic(err)
		}
		d.child = c.Process.Pid
	case "lingers":
		d.info.Lingers = true
	case "daemon":
		beDaemon()
	case "bad-options":
		d.configureErr = fmt.Errorf("configure: the option x must be a number: %w", errdefs.ErrInvalidArgument)
	default:
		panic(mode)
	}
	serve.Main(d, serve.Drivers{Volume: d})
}

// onlyServes is a driver in go-plugin's words, without serve.Main.
type onlyServes struct {
	plugin.NetRPCUnsupportedPlugin
	d *driver
}

func (o *onlyServes) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	if o.d != nil {
		plugins.Register(s, o.d)
		volume.Register(s, o.d)
	}
	return nil
}

func (o *onlyServes) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("no")
}

// serveOnly serves one version of the contract.
func serveOnly(version int, d *driver) {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugins.Handshake, GRPCServer: plugin.DefaultGRPCServer,
		VersionedPlugins: map[int]plugin.PluginSet{version: {"x": &onlyServes{d: d}}},
	})
	os.Exit(0)
}

// servesFromAnother names a socket that somebody else listens on.
func servesFromAnother() {
	path := filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "plugin1")
	if len(os.Args) > 3 {
		l, err := net.Listen("unix", path)
		if err != nil {
			panic(err)
		}
		s := grpc.NewServer()
		d := &driver{info: plugins.Info{Family: plugins.Volume, Name: "test"}}
		plugins.Register(s, d)
		_ = s.Serve(l)
	}
	c := exec.Command("/proc/self/exe", asPlugin, "serves-from-another-process", "child")
	c.Env = os.Environ()
	if err := c.Start(); err != nil {
		panic(err)
	}
	for {
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("1|2|unix|%s|grpc\n", path)
	select {}
}

// driver does what the id of a volume says.
type driver struct {
	info                    plugins.Info
	diesInInfo, hangsInInfo bool
	configureErr            error
	child                   int
	config                  plugins.Config
}

func (d *driver) Info(ctx context.Context) (plugins.Info, error) {
	if ctx.Done() == nil { // serve.Main asks for itself
		return d.info, nil
	}
	if d.diesInInfo {
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"cannot go on","err":"no such device"}`)
		os.Exit(4)
	}
	if d.hangsInInfo {
		select {}
	}
	return d.info, nil
}

func (d *driver) Configure(_ context.Context, c plugins.Config) error {
	d.config = c
	return d.configureErr
}

func (d *driver) Create(_ context.Context, v volume.Volume) (volume.Created, error) {
	switch v.ID {
	case "config":
		return volume.Created{Path: fmt.Sprintf("%s|%s|%s", d.config.Root, d.config.State, d.config.Options)}, nil
	case "environment":
		return volume.Created{Path: strings.Join(os.Environ(), " ")}, nil
	case "child":
		return volume.Created{Path: fmt.Sprint(d.child)}, nil
	case "pid":
		return volume.Created{Path: fmt.Sprint(os.Getpid())}, nil
	case "session":
		sid, _ := unix.Getsid(0)
		comm, _ := os.ReadFile("/proc/self/comm")
		stdin, _ := os.Readlink("/proc/self/fd/0")
		return volume.Created{Path: fmt.Sprintf("%v %s %s", sid == os.Getpid(), strings.TrimSpace(string(comm)), stdin)}, nil
	}
	return volume.Created{}, nil
}

func (d *driver) Delete(ctx context.Context, v volume.Volume) error {
	switch v.ID {
	case "die":
		os.Exit(5)
	case "die-once":
		mark := filepath.Join(d.config.Root, "died")
		if _, err := os.Stat(mark); err != nil {
			_ = os.WriteFile(mark, nil, 0o600)
			os.Exit(6)
		}
	case "die-of-panic":
		go panic("a bug of mine")
		select {}
	case "panic":
		panic("a bug of mine")
	case "hang":
		<-ctx.Done()
		select {}
	case "slow":
		time.Sleep(100 * time.Millisecond)
	case "stop-once":
		mark := filepath.Join(d.config.Root, "stopped")
		if _, err := os.Stat(mark); err != nil {
			_ = os.WriteFile(mark, nil, 0o600)
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
			select {} // the signal may reach other threads a moment later
		}
	case "print":
		fmt.Print(strings.Repeat("print ", 1<<18))
	case "refuse":
		return fmt.Errorf("delete volume %s: three containers use it: %w", v.Name, errdefs.ErrFailedPrecondition)
	case "unavailable":
		return fmt.Errorf("the server elsewhere is down: %w", errdefs.ErrUnavailable)
	}
	return nil
}

func (d *driver) Mount(ctx context.Context, v volume.Volume, _ string) (plugins.Mount, error) {
	return plugins.Mount{Type: "bind"}, d.Delete(ctx, v)
}

func (d *driver) Unmount(ctx context.Context, v volume.Volume, _ string) error {
	return d.Delete(ctx, v)
}

func (d *driver) All(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		mark := filepath.Join(d.config.Root, "list-dies-once")
		if os.Remove(mark) == nil {
			os.Exit(7)
		}
		_ = yield("a", nil) && yield("b", nil)
		if _, err := os.Stat(filepath.Join(d.config.Root, "list-dies-later")); err == nil {
			os.Exit(8)
		}
	}
}

// beDaemon hosts a plugin until it is killed. Its arguments: root, state, mode.
func beDaemon() {
	h, err := New(Options{Root: os.Args[3], State: os.Args[4], Builtin: map[ID]Program{testID: self(os.Args[5])}})
	if err != nil {
		panic(err)
	}
	go func() { _ = h.Run(context.Background()) }()
	b, err := h.Volume("test")
	if err != nil {
		panic(err)
	}
	c, err := b.Create(context.Background(), volume.Volume{ID: "pid"})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Path)
	select {}
}
