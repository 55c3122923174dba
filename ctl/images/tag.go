package images

import (
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func newTagCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME[:TAG]", Short: "Give an image another name",
		Args: cli.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := env.Images().Tag(cmd.Context(), &imagesv1.TagRequest{Ref: args[0], Name: args[1]})
			return err
		},
	}
}
