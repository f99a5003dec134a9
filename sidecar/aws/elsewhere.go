package aws

const (
	byRBAC       = "permissions are Kubernetes RBAC: kubectl create role and rolebinding, with the verbs of docs/operations.md"
	byAliases    = "aliases are in spec.aliases of a MasterKey: kubectl edit masterkey <name>"
	byRotation   = "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"rotation\":{\"interval\":\"8760h\",\"suspend\":false}}}'"
	byLabels     = "MasterKeys have labels: kubectl label masterkey <name> <key>=<value>"
	noStores     = "there are no custom key stores; the root key of the installation may be in an HSM (docs/root-keys.md)"
	noImport     = "the material of keys is made by Datakeys"
	noRegions    = "an installation has no regions"
	noAsymmetric = "a MasterKey is symmetric and wraps data keys; use GenerateDataKeyPair, and the key pair in the application"
)

// elsewhere are the operations of the service model that the key service does not have, and what there is in their place.
var elsewhere = map[string]string{
	"CreateKey":            "keys are objects: kubectl apply a MasterKey",
	"UpdateKeyDescription": "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"description\":\"<text>\"}}'",
	"EnableKey":            "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"state\":\"Enabled\"}}'",
	"DisableKey":           "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"state\":\"Disabled\"}}'",
	"ScheduleKeyDeletion":  "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"state\":\"PendingDeletion\"}}'",
	"CancelKeyDeletion":    "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"state\":\"Disabled\"}}'",
	"GetKeyLastUsage":      "the audit log of the manager has each use",

	"CreateAlias": byAliases, "UpdateAlias": byAliases, "DeleteAlias": byAliases,

	"EnableKeyRotation":    byRotation,
	"DisableKeyRotation":   "kubectl patch masterkey <name> --type=merge -p '{\"spec\":{\"rotation\":{\"suspend\":true}}}'",
	"RotateKeyOnDemand":    "kubectl annotate masterkey <name> --overwrite datakeys.io/rotate-requested-at=<now>",
	"GetKeyRotationStatus": "kubectl get masterkey <name> -o yaml, status.versions and spec.rotation",
	"ListKeyRotations":     "kubectl get masterkey <name> -o yaml, status.versions",

	"GetKeyPolicy": byRBAC, "PutKeyPolicy": byRBAC, "ListKeyPolicies": byRBAC,
	"CreateGrant": byRBAC, "ListGrants": byRBAC, "ListRetirableGrants": byRBAC, "RetireGrant": byRBAC, "RevokeGrant": byRBAC,

	"TagResource": byLabels, "UntagResource": byLabels, "ListResourceTags": byLabels,

	"CreateCustomKeyStore": noStores, "ConnectCustomKeyStore": noStores, "DescribeCustomKeyStores": noStores,
	"UpdateCustomKeyStore": noStores, "DisconnectCustomKeyStore": noStores, "DeleteCustomKeyStore": noStores,

	"GetParametersForImport": noImport, "ImportKeyMaterial": noImport, "DeleteImportedKeyMaterial": noImport,

	"ReplicateKey": noRegions, "UpdatePrimaryRegion": noRegions,

	"Sign": noAsymmetric, "Verify": noAsymmetric, "GetPublicKey": noAsymmetric, "DeriveSharedSecret": noAsymmetric,
	"GenerateMac": noAsymmetric, "VerifyMac": noAsymmetric, "Encapsulate": noAsymmetric, "Decapsulate": noAsymmetric,
}
