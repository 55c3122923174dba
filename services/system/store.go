package system

import (
	"github.com/gantryd/gantry/internal/meta"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// The tables that are counted and compared. Other services own them; nothing here writes a record
// of theirs but a repair that was asked for.
var (
	images     = meta.NewTable("images", func() *imagesv1.Image { return &imagesv1.Image{} })
	containers = meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} })
	networks   = meta.NewTable("networks", func() *networksv1.Network { return &networksv1.Network{} })
	volumes    = meta.NewTable("volumes", func() *volumesv1.Volume { return &volumesv1.Volume{} })
	endpoints  = meta.NewTable("endpoints", func() *networksv1.Endpoint { return &networksv1.Endpoint{} })
	addresses  = meta.NewTable("addresses", func() *storev1.Ref { return &storev1.Ref{} })
)
