package docs_test

import (
	"context"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// podToken is a file with the pod's token. The kubelet renews it, so every call reads it.
type podToken string

func (file podToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	return map[string]string{"authorization": "Bearer " + string(token)}, err
}

func (podToken) RequireTransportSecurity() bool { return true }

func encryptAndDecrypt(ctx context.Context, plaintext []byte) ([]byte, error) {
	tls, err := credentials.NewClientTLSFromFile("/var/run/key-service/roots.pem", "")
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("datakeys-key-service.datakeys-system.svc:8443", grpc.WithTransportCredentials(tls),
		grpc.WithPerRPCCredentials(podToken("/var/run/key-service/token")), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	defer conn.Close() // a program keeps its connection
	keys := kmsv1.NewKeyServiceClient(conn)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()

	tenant := map[string]string{"tenant": "a"} // not secret; whoever decrypts states it again
	sealed, err := keys.Encrypt(ctx, &kmsv1.EncryptRequest{
		KeyId: "alias/orders-prod", Plaintext: plaintext, EncryptionContext: tenant, Door: kmsv1.Door_DOOR_AWS,
	})
	if err != nil {
		return nil, err
	}
	opened, err := keys.Decrypt(ctx, &kmsv1.DecryptRequest{
		CiphertextBlob: sealed.GetCiphertextBlob(), EncryptionContext: tenant, Door: kmsv1.Door_DOOR_AWS,
	})
	return opened.GetPlaintext(), err
}

// reason is why a call was refused, and empty where it did not come to the key service.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == kmsv1.ErrorDomain {
			return info.GetReason()
		}
	}
	return ""
}

func Example_keyService() {
	plaintext, err := encryptAndDecrypt(context.Background(), []byte("4111 1111 1111 1111"))
	if err != nil {
		log.Fatalln(reason(err), err)
	}
	log.Printf("%d bytes", len(plaintext))
}
