package kmsgrpc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

func TestListsAndDescriptionsOverGRPC(t *testing.T) {
	w := kmstest.Listed(t)
	arn := w.ARN(t)
	materialID, _ := w.Material(t, ordersKey)
	due := begin.AddDate(0, 0, 30)
	w.MasterKeys.Edit("team-a", "other", func(k *kms.MasterKey) { k.State, k.DeletionTime = kms.KeyStatePendingDeletion, due })
	w.Store.Delete(otherKey.KeyID)
	w = w.Replica(t)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	ctx := as(t, lister)

	random, err := client.GenerateRandom(ctx, &kmsv1.GenerateRandomRequest{NumberOfBytes: 33})
	if err != nil || len(random.GetPlaintext()) != 33 {
		t.Errorf("GenerateRandom: got %d bytes and %v", len(random.GetPlaintext()), err)
	}
	described, err := client.DescribeKey(ctx, &kmsv1.DescribeKeyRequest{KeyId: "alias/orders-prod"})
	want := &kmsv1.KeyMetadata{
		KeyId: ordersKey.KeyID, Arn: arn + "team-a:key/" + ordersKey.KeyID, Namespace: "team-a", Name: "orders", Description: "for orders",
		KeyState: "Enabled", KeySpec: "AES_256", CreationTime: timestamppb.New(begin), PrimaryVersion: 1, MaterialId: materialID[:],
	}
	if diff := cmp.Diff(want, described.GetKey(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("DescribeKey: got error %v and (-want +got)\n%s", err, diff)
	}
	described, err = client.DescribeKey(ctx, &kmsv1.DescribeKeyRequest{KeyId: "other"})
	want = &kmsv1.KeyMetadata{
		KeyId: otherKey.KeyID, Arn: arn + "team-a:key/" + otherKey.KeyID, Namespace: "team-a", Name: "other", Description: "for other",
		KeyState: "PendingDeletion", KeySpec: "AES_256", CreationTime: timestamppb.New(begin.Add(-3600e9)), DeletionTime: timestamppb.New(due),
	}
	if diff := cmp.Diff(want, described.GetKey(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("DescribeKey, its material gone: got error %v and (-want +got)\n%s", err, diff)
	}

	keys, err := client.ListKeys(ctx, &kmsv1.ListKeysRequest{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	rest, err := client.ListKeys(ctx, &kmsv1.ListKeysRequest{Marker: keys.GetNextMarker()})
	wantKeys := []*kmsv1.KeyEntry{
		{KeyId: ordersKey.KeyID, Arn: arn + "team-a:key/" + ordersKey.KeyID, Name: "orders"},
		{KeyId: otherKey.KeyID, Arn: arn + "team-a:key/" + otherKey.KeyID, Name: "other"},
	}
	if diff := cmp.Diff(wantKeys, append(keys.GetKeys(), rest.GetKeys()...), protocmp.Transform()); err != nil || diff != "" || rest.GetNextMarker() != "" {
		t.Errorf("ListKeys: got marker %q, error %v and (-want +got)\n%s", rest.GetNextMarker(), err, diff)
	}
	aliases, err := client.ListAliases(ctx, &kmsv1.ListAliasesRequest{Limit: 1, KeyId: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	more, err := client.ListAliases(ctx, &kmsv1.ListAliasesRequest{Marker: aliases.GetNextMarker(), KeyId: "orders"})
	wantAliases := []*kmsv1.AliasEntry{
		{AliasName: "alias/orders-prod", AliasArn: arn + "team-a:alias/orders-prod", TargetKeyId: ordersKey.KeyID},
		{AliasName: "alias/z/last", AliasArn: arn + "team-a:alias/z/last", TargetKeyId: ordersKey.KeyID},
	}
	if diff := cmp.Diff(wantAliases, append(aliases.GetAliases(), more.GetAliases()...), protocmp.Transform()); err != nil || diff != "" || more.GetNextMarker() != "" {
		t.Errorf("ListAliases: got marker %q, error %v and (-want +got)\n%s", more.GetNextMarker(), err, diff)
	}

	for method, call := range map[string]func() error{
		"GenerateRandom": func() error {
			_, err := client.GenerateRandom(as(t, nobody), &kmsv1.GenerateRandomRequest{NumberOfBytes: 1})
			return err
		},
		"DescribeKey": func() error {
			_, err := client.DescribeKey(as(t, nobody), &kmsv1.DescribeKeyRequest{KeyId: "orders"})
			return err
		},
		"ListKeys": func() error { _, err := client.ListKeys(as(t, nobody), &kmsv1.ListKeysRequest{}); return err },
		"ListAliases": func() error {
			_, err := client.ListAliases(as(t, nobody), &kmsv1.ListAliasesRequest{})
			return err
		},
	} {
		if got := status.Code(call()); got != codes.PermissionDenied {
			t.Errorf("%s without permission: got %v", method, got)
		}
	}
}
