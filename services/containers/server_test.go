package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// dial serves w and returns a client of it.
func dial(t *testing.T, w *world) containersv1.ContainersServiceClient {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(rpc.ServerOptions(rpc.Options{})...)
	w.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///buf", append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return containersv1.NewContainersServiceClient(cc)
}

// TestWire is gantry run, as the tool does it, and the other verbs, over gRPC.
func TestWire(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	c := dial(t, w)
	created, err := c.Create(ctx, &containersv1.CreateRequest{Name: "web", Spec: &containersv1.Spec{Image: "busybox", OpenStdin: true}})
	if err != nil {
		t.Fatal(err)
	}
	if len(created.GetWarnings()) > 0 {
		t.Error(created.GetWarnings())
	}
	onHost, err := c.Create(ctx, &containersv1.CreateRequest{Name: "host", Spec: &containersv1.Spec{
		Image: "busybox", NetworkMode: containersv1.NetworkMode_NETWORK_MODE_HOST, Ports: []*containersv1.PortMapping{{ContainerPort: 80}},
	}})
	if err != nil || len(onHost.GetWarnings()) != 1 || !strings.Contains(onHost.GetWarnings()[0], "Published ports are discarded") {
		t.Errorf("ports on the host's network: %v, %v", onHost.GetWarnings(), err)
	}
	if _, err := c.Remove(ctx, &containersv1.RemoveRequest{Ref: "host"}); err != nil {
		t.Error(err)
	}
	id := created.GetContainer().GetMeta().GetId()
	stream, err := c.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&containersv1.AttachRequest{Message: &containersv1.AttachRequest_Start{Start: &containersv1.AttachStart{Ref: id, Await: true}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // registered
		t.Fatal(err)
	}
	if r, err := c.Start(ctx, &containersv1.StartRequest{Ref: id}); err != nil || r.GetContainer().GetStatus().GetPid() != fakePID {
		t.Fatal(r, err)
	}
	m, err := stream.Recv()
	if err != nil || string(m.GetOutput().GetStdout()) != "first byte\n" {
		t.Errorf("%v, %v", m, err)
	}
	x, err := c.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Send(&containersv1.ExecRequest{Message: &containersv1.ExecRequest_Start{Start: &containersv1.ExecStart{Ref: "web", Args: []string{"ls"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Header(); err != nil {
		t.Fatal(err)
	}
	w.shims.of(w.state(id)).exec().end(&typesv1.Exit{Code: 2})
	if m, err := x.Recv(); err != nil || m.GetOutput().GetExit().GetCode() != 2 {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := x.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the exit: %v", err)
	}
	if _, err := c.Pause(ctx, &containersv1.PauseRequest{Ref: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Resume(ctx, &containersv1.ResumeRequest{Ref: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Kill(ctx, &containersv1.KillRequest{Ref: "web", Signal: "USR1"}); err != nil {
		t.Error(err)
	}
	if r, err := c.Stop(ctx, &containersv1.StopRequest{Ref: "web", Grace: durationpb.New(0)}); err != nil || r.GetContainer().GetStatus().GetExit().GetCode() != 137 {
		t.Errorf("%v, %v", r, err)
	}
	if m, err := stream.Recv(); err != nil || m.GetOutput().GetExit().GetCode() != 137 {
		t.Errorf("%v, %v", m, err)
	}
	if r, err := c.Wait(ctx, &containersv1.WaitRequest{Ref: "web"}); err != nil || r.GetExit().GetCode() != 137 {
		t.Errorf("%v, %v", r, err)
	}
	l, err := c.List(ctx, &containersv1.ListRequest{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := l.Recv(); err != nil || m.GetContainer().GetMeta().GetName() != "web" {
		t.Errorf("%v, %v", m, err)
	}
	if logs, err := c.Logs(ctx, &containersv1.LogsRequest{Ref: "web", Tail: -1}); err != nil {
		t.Error(err)
	} else if _, err := logs.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, err := c.Remove(ctx, &containersv1.RemoveRequest{Ref: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, &containersv1.GetRequest{Ref: "web"}); !errdefs.IsNotFound(rpc.FromStatus(err)) {
		t.Error(err)
	}
	// a stream that does not say what it wants
	bad, err := c.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Send(&containersv1.AttachRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Recv(); !errdefs.IsInvalidArgument(rpc.FromStatus(err)) {
		t.Error(err)
	}
	w.clean()
}

// TestReasonOverTheWire: the tool exits with 127 because of this.
func TestReasonOverTheWire(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.shims.onSpawn = func(s *fakeShim) { s.fail["start"] = fmt.Errorf("exec sh: no such file: %w", errdefs.ErrNotFound) }
	w.create("web", nil)
	_, err := dial(t, w).Start(ctx, &containersv1.StartRequest{Ref: "web"})
	if err = rpc.FromStatus(err); rpc.Reason(err) != ReasonNotFound || !errdefs.IsNotFound(err) {
		t.Errorf("%v, reason %q", err, rpc.Reason(err))
	}
}
