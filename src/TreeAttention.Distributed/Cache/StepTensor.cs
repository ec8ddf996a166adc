namespace TreeAttention.Distributed;

/// <summary>The tensors of a step that may be of another type than fp32.</summary>
internal enum StepTensor
{
    Query,
    Key,
    Value,
    Output,
}
