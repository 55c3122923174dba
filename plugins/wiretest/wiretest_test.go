package wiretest

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
)

// counter counts what reaches it.
type counter struct {
	driverv1.UnimplementedVolumeBackendServiceServer
	deleted atomic.Int64
}

func (c *counter) DeleteVolume(context.Context, *driverv1.DeleteVolumeRequest) (*driverv1.DeleteVolumeResponse, error) {
	c.deleted.Add(1)
	return &driverv1.DeleteVolumeResponse{}, nil
}

func (c *counter) ListVolumes(_ *driverv1.ListVolumesRequest, s grpc.ServerStreamingServer[driverv1.ListVolumesResponse]) error {
	for _, id := range []string{"a", "b", "c"} {
		if err := s.Send(&driverv1.ListVolumesResponse{Id: id}); err != nil {
			return err
		}
	}
	return nil
}

func TestEveryCallSucceedsOnEveryWire(t *testing.T) {
	for _, w := range Wires {
		if w.Direct() {
			continue
		}
		t.Run(w.Name, func(t *testing.T) {
			c := &counter{}
			cc := w.Connect(t, func(s grpc.ServiceRegistrar) { driverv1.RegisterVolumeBackendServiceServer(s, c) })
			far := driverv1.NewVolumeBackendServiceClient(cc)
			const each, workers = 50, 4
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for range each {
						if _, err := far.DeleteVolume(t.Context(), &driverv1.DeleteVolumeRequest{}); err != nil {
							t.Errorf("delete: %v", err)
						}
						if n := list(t, far); n != 3 {
							t.Errorf("list: got %d, want 3", n)
						}
					}
				})
			}
			wg.Wait()
			if n := c.deleted.Load(); w.Name == "faulty" && n <= each*workers {
				t.Errorf("the driver was called %d times for %d calls: no answer was lost", n, each*workers)
			} else if w.Name == "grpc" && n != each*workers {
				t.Errorf("the driver was called %d times for %d calls", n, each*workers)
			}
		})
	}
}

func list(t *testing.T, far driverv1.VolumeBackendServiceClient) (n int) {
	s, err := far.ListVolumes(t.Context(), &driverv1.ListVolumesRequest{})
	for err == nil {
		if _, err = s.Recv(); err == nil {
			n++
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("list: %v", err)
	}
	return n
}
