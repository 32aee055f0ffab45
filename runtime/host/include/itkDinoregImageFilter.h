// A registration with dinoreg-rt as an ITK filter: two images in; displacement field, transform and
// warped image out.
//
//   using Filter = itk::DinoregImageFilter<itk::Image<float, 3>>;
//   auto filter = Filter::New();
//   filter->SetFixedImage(fixed);
//   filter->SetMovingImage(moving);
//   filter->Update();
//   itk::WriteImage(filter->GetWarpedImage(), "warped.nii.gz");
//
// Link dinoreg::dinoreg_host. The images are read in place; dinoreg_host.h says how the Python
// interpreter is found.
#ifndef itkDinoregImageFilter_h
#define itkDinoregImageFilter_h

#include <string>

#include "dinoreg_host.hpp"
#include "itkDisplacementFieldTransform.h"
#include "itkImage.h"
#include "itkImageToImageFilter.h"

namespace itk {

template <typename TFixedImage, typename TMovingImage = TFixedImage>
class DinoregImageFilter : public ImageToImageFilter<TFixedImage, Image<Vector<float, 3>, 3>> {
 public:
  ITK_DISALLOW_COPY_AND_MOVE(DinoregImageFilter);
  static_assert(TFixedImage::ImageDimension == 3 && TMovingImage::ImageDimension == 3,
                "dinoreg-rt registers 3D images");

  using Self = DinoregImageFilter;
  using DisplacementFieldType = Image<Vector<float, 3>, 3>;
  using Superclass = ImageToImageFilter<TFixedImage, DisplacementFieldType>;
  using Pointer = SmartPointer<Self>;
  using ConstPointer = SmartPointer<const Self>;
  using WarpedImageType = Image<float, 3>;
  using MaskType = Image<unsigned char, 3>;
  using TransformType = DisplacementFieldTransform<float, 3>;

  itkNewMacro(Self);
  itkTypeMacro(DinoregImageFilter, ImageToImageFilter);

  void SetFixedImage(const TFixedImage* image) {
    this->SetNthInput(0, const_cast<TFixedImage*>(image));
  }
  void SetMovingImage(const TMovingImage* image) {
    this->ProcessObject::SetNthInput(1, const_cast<TMovingImage*>(image));
  }
  // Voxels other than 0 count. Each lies on the grid of its image.
  void SetFixedMask(const MaskType* mask) {
    this->ProcessObject::SetInput("FixedMask", const_cast<MaskType*>(mask));
  }
  void SetMovingMask(const MaskType* mask) {
    this->ProcessObject::SetInput("MovingMask", const_cast<MaskType*>(mask));
  }

  // Parameters as TOML, such as "preset = 'mind'\nthreads = 4".
  itkSetStringMacro(Options);
  itkGetStringMacro(Options);
  // A Python interpreter with dinoreg-rt; empty: found as dinoreg_host.h says.
  itkSetStringMacro(Python);
  itkGetStringMacro(Python);

  // The output of the filter: displacements in mm on the grid of the fixed image.
  DisplacementFieldType* GetDisplacementField() { return this->GetOutput(); }
  // The moving image on the grid of the fixed image.
  WarpedImageType* GetWarpedImage() {
    return static_cast<WarpedImageType*>(this->ProcessObject::GetOutput(1));
  }
  // Maps fixed to moving points, as ResampleImageFilter expects.
  typename TransformType::Pointer GetTransform() {
    auto transform = TransformType::New();
    transform->SetDisplacementField(this->GetDisplacementField());
    return transform;
  }
  // Whether the result should be used, and the report in JSON, which has the reasons.
  bool GetTrusted() const { return m_Result.trusted; }
  const std::string& GetReport() const { return m_Result.report; }

 protected:
  DinoregImageFilter() {
    this->SetNumberOfRequiredInputs(2);
    this->SetNumberOfRequiredOutputs(2);
    this->SetNthOutput(1, WarpedImageType::New());
  }
  ~DinoregImageFilter() override = default;

  // The images may differ in size and place.
  void VerifyInputInformation() const override {}

  void GenerateOutputInformation() override {
    const auto* fixed = this->GetInput();
    for (unsigned int i = 0; i < 2; ++i) {
      auto* output = static_cast<ImageBase<3>*>(this->ProcessObject::GetOutput(i));
      output->CopyInformation(fixed);
      output->SetLargestPossibleRegion(fixed->GetLargestPossibleRegion());
    }
  }
  void GenerateInputRequestedRegion() override {
    for (const auto& name : this->GetInputNames())
      if (auto* input = this->ProcessObject::GetInput(name))
        input->SetRequestedRegionToLargestPossibleRegion();
  }
  void EnlargeOutputRequestedRegion(DataObject*) override {
    for (unsigned int i = 0; i < 2; ++i)
      this->ProcessObject::GetOutput(i)->SetRequestedRegionToLargestPossibleRegion();
  }

  void GenerateData() override {
    auto* field = this->GetDisplacementField();
    auto* warped = this->GetWarpedImage();
    field->SetBufferedRegion(field->GetLargestPossibleRegion());
    field->Allocate();
    warped->SetBufferedRegion(warped->GetLargestPossibleRegion());
    warped->Allocate();

    dinoreg::Arguments arguments(View(this->GetInput()),
                                 View(static_cast<const TMovingImage*>(this->GetInput(1))));
    if (const auto* mask = Mask("FixedMask")) arguments.fixed_mask(View(mask));
    if (const auto* mask = Mask("MovingMask")) arguments.moving_mask(View(mask));
    arguments.displacement(Buffer(field->GetBufferPointer()->GetDataPointer(), field, 3));
    arguments.warped(Buffer(warped->GetBufferPointer(), warped, 1));
    arguments.progress(&Self::Progress, this);
    try {
      dinoreg::Registrar registrar({m_Python, m_Options, 1});
      m_Result = registrar.run(arguments);
    } catch (const dinoreg::HostError& error) {
      if (error.status() == DR_HOST_CANCELLED) {
        this->ResetPipeline();
        throw ProcessAborted(__FILE__, __LINE__);
      }
      itkExceptionMacro(<< error.what());
    }
  }

 private:
  const typename Superclass::InputImageType* GetInput() const {
    return static_cast<const TFixedImage*>(this->ProcessObject::GetInput(0));
  }
  const DataObject* GetInput(unsigned int i) const { return this->ProcessObject::GetInput(i); }
  const MaskType* Mask(const char* name) const {
    return static_cast<const MaskType*>(this->ProcessObject::GetInput(name));
  }

  // The buffered voxels of an image and where they lie.
  template <typename TImage>
  static dinoreg::VolumeView View(const TImage* image) {
    const auto region = image->GetBufferedRegion();
    typename TImage::PointType origin;
    image->TransformIndexToPhysicalPoint(region.GetIndex(), origin);
    dinoreg::Grid grid;
    for (unsigned int i = 0; i < 3; ++i) {
      grid.size[i] = (std::int64_t)region.GetSize(i);
      grid.spacing[i] = image->GetSpacing()[i];
      grid.origin[i] = origin[i];
      for (unsigned int j = 0; j < 3; ++j) grid.direction[3 * i + j] = image->GetDirection()[i][j];
    }
    using Voxel = typename TImage::PixelType;
    return dinoreg::VolumeView(
        std::span<const Voxel>(image->GetBufferPointer(), (std::size_t)grid.voxels()), grid);
  }
  static std::span<float> Buffer(float* values, const ImageBase<3>* image, std::size_t components) {
    return {values, components * image->GetBufferedRegion().GetNumberOfPixels()};
  }

  // Called while the registration works, from the thread that called Update.
  static int Progress(void* self, const char* stage, double fraction) {
    auto* filter = static_cast<Self*>(self);
    if (std::string(stage) == "refine") filter->UpdateProgress((float)fraction);
    return filter->GetAbortGenerateData();
  }

  std::string m_Options;
  std::string m_Python;
  dinoreg::Result m_Result;
};

}  // namespace itk

#endif  // itkDinoregImageFilter_h
